// A rank does not outlive its launcher, however that was ended, nor does its shared memory.

#pragma once

#include <sys/prctl.h>
#include <unistd.h>

#include <csignal>
#include <string>
#include <vector>

namespace pulse {

// A signal handler gets nothing but the signal's number.
inline std::vector<std::string> &left_behind() {
  static std::vector<std::string> files;
  return files;
}

inline void end_orphan(int) {
  for (const std::string &file : left_behind()) unlink(file.c_str());
  kill(getpid(), SIGKILL);
}

// Has the kernel send a signal when the launcher ends, and then removes files and dies. No thread of
// Python takes part, nor one of MPI.
inline void end_with_launcher(int signal, long launcher, std::vector<std::string> files) {
  left_behind() = std::move(files);
  struct sigaction action {};
  action.sa_handler = end_orphan;
  sigaction(signal, &action, nullptr);
  prctl(PR_SET_PDEATHSIG, static_cast<unsigned long>(signal), 0, 0, 0);
  if (getppid() != launcher) end_orphan(signal);  // it was faster
}

}  // namespace pulse
