// Ends a rank and removes its shared memory when its launcher ends, even if that is killed.

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

// Has the kernel send a signal when the launcher ends; its handler removes the files and kills this
// process. No thread of Python or MPI is involved.
inline void end_with_launcher(int signal, long id, std::vector<std::string> files, bool both) {
  launcher() = {id, both ? Process(id) : Process(), std::move(files)};
  struct sigaction action {};
  action.sa_handler = end_orphan;
  sigaction(signal, &action, nullptr);
  prctl(PR_SET_PDEATHSIG, static_cast<unsigned long>(signal), 0, 0, 0);
  if (getppid() != id) end_orphan(signal);  // the launcher has ended before the prctl
}

}  // namespace pulse
