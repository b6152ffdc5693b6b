// A rank does not outlive its launcher, however that was ended, nor does its shared memory.

#pragma once

#include <sys/prctl.h>
#include <unistd.h>

#include <csignal>
#include <string>
#include <utility>
#include <vector>

#include "launcher.hpp"

namespace pulse {

inline void end_orphan(int) {
  for (const std::string &file : launcher().shared) unlink(file.c_str());
  kill(getpid(), SIGKILL);
}

// Has the kernel send a signal when the launcher ends, and then removes files and dies. No thread of
// Python takes part, nor one of MPI.
inline void end_with_launcher(int signal, long id, std::vector<std::string> files, bool both) {
  launcher() = {id, both ? Process(id) : Process(), std::move(files)};
  struct sigaction action {};
  action.sa_handler = end_orphan;
  sigaction(signal, &action, nullptr);
  prctl(PR_SET_PDEATHSIG, static_cast<unsigned long>(signal), 0, 0, 0);
  if (getppid() != id) end_orphan(signal);  // it was faster
}

}  // namespace pulse
