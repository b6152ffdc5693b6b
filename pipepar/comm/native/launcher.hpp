// A launcher ends with its job. One that waits for its daemon on a host that is cut off would wait for
// ever, and the user's script with it; so would that daemon.

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

// Milliseconds that it may take to end: by itself, which is more than a block takes to be told; and when
// it is asked to.
constexpr int kByItself = 3000, kWhenAsked = 500;

struct Launcher {
  long id = 0;
  Process process;                  // empty where it is not to be ended
  std::vector<std::string> shared;  // files that it removes when it ends in order
};

// This process's own; a signal handler gets nothing but the signal's number.
inline Launcher &launcher() {
  static Launcher own;
  return own;
}

// The parent of a process, by its name in /proc; 0 for none.
inline long parent_of(int proc, const char *name) {
  const int folder = openat(proc, name, O_RDONLY | O_DIRECTORY);
  const int file = openat(folder, "stat", O_RDONLY);
  char text[512] = "";
  const ssize_t size = read(file, text, sizeof text - 1);
  ::close(file);
  ::close(folder);
  // What stands before the last parenthesis is the process's own choice.
  const char *end = size > 0 ? std::strrchr(text, ')') : nullptr;
  return end != nullptr && std::strlen(end) > 4 ? std::strtol(end + 4, nullptr, 10) : 0;
}

// The children of a process, without the heap: another thread may have held it when we were forked.
class Children {
 public:
  explicit Children(long parent) {
    const int proc = open("/proc", O_RDONLY | O_DIRECTORY);
    alignas(dirent64) char buffer[4096];
    long size = 0;
    while ((size = syscall(SYS_getdents64, proc, buffer, sizeof buffer)) > 0)
      for (long at = 0; at < size; at += reinterpret_cast<const dirent64 *>(buffer + at)->d_reclen)
        take(parent, proc, reinterpret_cast<const dirent64 *>(buffer + at)->d_name);
    ::close(proc);
  }

  void signal(int number) const {
    for (std::size_t each = 0; each < count_; ++each) found_[each].signal(number);
  }

 private:
  void take(long parent, int proc, const char *name) {
    const long id = std::strtol(name, nullptr, 10);
    if (id <= 0 || count_ == found_.size() || parent_of(proc, name) != parent) return;
    Process child(id);
    if (child && parent_of(proc, name) == parent) found_[count_++] = std::move(child);
  }

  std::array<Process, 512> found_;
  std::size_t count_ = 0;
};

// What a child of this process does, which only calls what a signal handler may call.
[[noreturn]] inline void outlast(Launcher &launcher) {
  sigset_t all;
  sigfillset(&all);
  sigprocmask(SIG_BLOCK, &all, nullptr);
  setsid();  // who ends this rank's group spares this process
  prctl(PR_SET_NAME, "pipepar-end", 0, 0, 0);
  launcher.process.keep_alone();  // nobody's pipe is held open
  if (launcher.process.ends_within(kByItself)) _exit(0);
  const Children children(launcher.id);  // such as the ssh or srun that leads to another host
  launcher.process.signal(SIGTERM);
  if (!launcher.process.ends_within(kWhenAsked)) {
    launcher.process.signal(SIGKILL);
    for (const std::string &file : launcher.shared) unlink(file.c_str());
  }
  children.signal(SIGTERM);
  _exit(0);
}

// The job is about to end: sees to it that the launcher ends, too, whatever becomes of this process.
inline void end_launcher() {
  static std::atomic_flag begun = ATOMIC_FLAG_INIT;
  if (!launcher().process || begun.test_and_set()) return;
  // A fork that tells nobody: what libraries do before and after one may wait for a thread that hangs.
  if (syscall(SYS_clone, 0, nullptr, nullptr, nullptr, nullptr) == 0) outlast(launcher());
}

}  // namespace pulse
