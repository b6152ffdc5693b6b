// Writes the stacks of all threads of this process, by Python's faulthandler, without the GIL.

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
  // The signal of the handler, the descriptor of the file that the handler writes to, the path of the
  // file to append the stacks to, and the paths of all such files for the message to the user.
  Stacks(int signal, int descriptor, std::string file, std::string files)
      : signal_(signal), descriptor_(descriptor), file_(std::move(file)), files_(std::move(files)) {}

  const std::string &files() const { return files_; }

  // Appends the stacks below a heading. Call it in a thread that blocks all signals.
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
    // One write, so that the texts of ranks that share the file do not mix.
    const int file = open(file_.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    (void)!::write(file < 0 ? STDERR_FILENO : file, heading.data(), heading.size());
    if (file >= 0) ::close(file);
  }

 private:
  int signal_ = 0, descriptor_ = -1;
  std::string file_, files_;
};

}  // namespace pulse
