// Ends a launcher whose job was aborted. A launcher that waits for its daemon on a host that is cut
// off would wait for ever, and so would that daemon and the user's script.

#pragma once

#include <dirent.h>
#include <fcntl.h>
#include <sys/prctl.h>

#include <array>
#include <atomic>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "process.hpp"

namespace pulse {

// Milliseconds before SIGTERM, longer than the final report takes, and between SIGTERM and SIGKILL.
constexpr int kBeforeTerminate = 3000, kBeforeKill = 500;

struct Launcher {
  long id = 0;
  Process process;                  // empty if it must not be ended
  std::vector<std::string> shared;  // files that it removes if it ends normally
};

// The launcher of this process. It is global since a signal handler receives only the number.
inline Launcher &launcher() {
  static Launcher own;
  return own;
}

// The parent of a process, given by its name in /proc; 0 for none.
inline long parent_of(int proc, const char *name) {
  const int folder = openat(proc, name, O_RDONLY | O_DIRECTORY);
  const int file = openat(folder, "stat", O_RDONLY);
  char text[512] = "";
  const ssize_t size = read(file, text, sizeof text - 1);
  ::close(file);
  ::close(folder);
  // The process chooses its name, which may contain parentheses; the state follows the last one.
  const char *end = size > 0 ? std::strrchr(text, ')') : nullptr;
  return end != nullptr && std::strlen(end) > 4 ? std::strtol(end + 4, nullptr, 10) : 0;
}

// The children of a process, found without using the heap, which another thread may have locked
// at the time of the fork.
class Children {
 public:
  explicit Children(long parent) {
    const int proc = open("/proc", O_RDONLY | O_DIRECTORY);
    alignas(dirent64) char buffer[4096];
    long size = 0;
    while ((size = syscall(SYS_getdents64, proc, buffer, sizeof buffer)) > 0)
      for (long at = 0; at < size; at += reinterpret_cast<const dirent64 *>(buffer + at)->d_reclen)
        add_if_child(parent, proc, reinterpret_cast<const dirent64 *>(buffer + at)->d_name);
    ::close(proc);
  }

  void signal(int number) const {
    for (std::size_t each = 0; each < count_; ++each) found_[each].signal(number);
  }

 private:
  void add_if_child(long parent, int proc, const char *name) {
    const long id = std::strtol(name, nullptr, 10);
    if (id <= 0 || count_ == found_.size() || parent_of(proc, name) != parent) return;
    Process child(id);
    if (child && parent_of(proc, name) == parent) found_[count_++] = std::move(child);
  }

  std::array<Process, 512> found_;
  std::size_t count_ = 0;
};

// Runs in a child of this process, and only calls functions that are safe in signal handlers.
[[noreturn]] inline void end_after_grace(Launcher &launcher) {
  sigset_t all;
  sigfillset(&all);
  sigprocmask(SIG_BLOCK, &all, nullptr);
  setsid();  // signals to the process group of the rank do not reach this process
  prctl(PR_SET_NAME, "pipepar-end", 0, 0, 0);
  launcher.process.keep_alone();  // readers of inherited pipes must see their end
  if (launcher.process.ends_within(kBeforeTerminate)) _exit(0);
  const Children children(launcher.id);  // such as the ssh or srun to another host
  launcher.process.signal(SIGTERM);
  if (!launcher.process.ends_within(kBeforeKill)) {
    launcher.process.signal(SIGKILL);
    for (const std::string &file : launcher.shared) unlink(file.c_str());
  }
  // After the launcher: mpirun would report the loss of its daemon and exit with status 0.
  children.signal(SIGTERM);
  _exit(0);
}

// Starts a process that ends the launcher if it does not end by itself; it outlives this process.
inline void end_launcher() {
  static std::atomic_flag begun = ATOMIC_FLAG_INIT;
  if (!launcher().process || begun.test_and_set()) return;
  // The system call instead of fork(): handlers of libraries (pthread_atfork) may wait for a thread
  // that hangs.
  if (syscall(SYS_clone, 0, nullptr, nullptr, nullptr, nullptr) == 0)
    end_after_grace(launcher());
}

}  // namespace pulse
