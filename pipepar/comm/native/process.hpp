// A handle (pidfd) of another process. Unlike a process id, it is never reused for another process.

#pragma once

#include <poll.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <utility>

namespace pulse {

// System calls by number, the same on x86, Arm and POWER, since headers may be older than the kernel.
constexpr long kPidfdSendSignal = 424, kPidfdOpen = 434, kCloseRange = 436;

class Process {
 public:
  Process() = default;
  // Empty if there is no such process, or if the kernel does not support handles.
  explicit Process(long id) : handle_(static_cast<int>(syscall(kPidfdOpen, id, 0))) {}
  Process(Process &&other) noexcept : handle_(std::exchange(other.handle_, -1)) {}
  Process &operator=(Process &&other) noexcept {
    std::swap(handle_, other.handle_);
    return *this;
  }
  ~Process() {
    if (handle_ >= 0) ::close(handle_);
  }

  explicit operator bool() const { return handle_ >= 0; }

  void signal(int number) const { (void)syscall(kPidfdSendSignal, handle_, number, nullptr, 0); }

  // Waits up to this long; returns whether the process has ended.
  bool ends_within(int milliseconds) const {
    pollfd end = {handle_, POLLIN, 0};
    return ::poll(&end, 1, milliseconds) > 0;
  }

  // Closes all file descriptors of this process except the handle.
  void keep_alone() {
    constexpr int kMany = 1 << 16;
    handle_ = dup2(handle_, 0);
    if (syscall(kCloseRange, 1, ~0U, 0) == 0) return;
    for (int other = 1; other < kMany; ++other) ::close(other);
  }

 private:
  int handle_ = -1;
};

}  // namespace pulse
