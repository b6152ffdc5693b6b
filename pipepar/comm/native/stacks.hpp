// The stacks of all threads of this process, as Python's own handler of a signal writes them, without GIL.

#pragma once

#include <fcntl.h>
#include <pthread.h>
#include <unistd.h>

#include <csignal>
#include <string>
#include <utility>
#include <vector>

namespace pulse {

class Stacks {
 public:
  Stacks() = default;
  // A signal, the descriptor of the file that its handler writes to, the file where they are added to
  // those of other ranks, and what the user is told of where all are.
  Stacks(int signal, int descriptor, std::string file, std::string files)
      : signal_(signal), descriptor_(descriptor), file_(std::move(file)), files_(std::move(files)) {}

  const std::string &files() const { return files_; }

  // Writes them below a heading; by a thread that blocks all signals.
  void write(std::string heading) const {
    if (lseek(descriptor_, 0, SEEK_SET) != 0 || ftruncate(descriptor_, 0) != 0) return;
    sigset_t only;
    sigemptyset(&only);
    sigaddset(&only, signal_);
    pthread_sigmask(SIG_UNBLOCK, &only, nullptr);
    raise(signal_);
    pthread_sigmask(SIG_BLOCK, &only, nullptr);
    std::vector<char> stacks(1 << 20);
    const ssize_t length = pread(descriptor_, stacks.data(), stacks.size(), 0);
    if (length > 0) heading.append(stacks.data(), static_cast<std::size_t>(length));
    heading += "\n";
    // In one write, so that several ranks can share a file.
    const int file = open(file_.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    (void)!::write(file < 0 ? STDERR_FILENO : file, heading.data(), heading.size());
    if (file >= 0) ::close(file);
  }

 private:
  int signal_ = 0, descriptor_ = -1;
  std::string file_, files_;
};

}  // namespace pulse
