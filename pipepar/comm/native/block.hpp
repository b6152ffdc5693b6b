// The text of the final report. It is made without Python, since Python may hang.

#pragma once

#include <cstdarg>
#include <cstdio>
#include <string>
#include <vector>

#include "beat.hpp"

namespace pulse {

__attribute__((format(printf, 1, 2))) inline std::string text(const char *format, ...) {
  char buffer[2048];
  va_list values;
  va_start(values, format);
  std::vsnprintf(buffer, sizeof buffer, format, values);
  va_end(values);
  return buffer;
}

inline std::string words(const Doing &doing) {
  static const char *const kWords[] = {"working outside of micro-batches", "reading", "waiting for", "computing",
                                       "sending", "writing", "waiting for its caller"};
  const bool known = doing.kind >= kOther && doing.kind <= kCaller;
  std::string result = known ? kWords[doing.kind] : "doing unknown work";
  if (doing.kind == kOther && doing.waits != 0) return "waiting for another rank";
  if (doing.kind == kOther || doing.kind == kCaller) return result;
  result += text(" micro-batch %lld", static_cast<long long>(doing.index));
  if (doing.first >= 0)
    result += text(" (samples %lld to %lld)", static_cast<long long>(doing.first), static_cast<long long>(doing.last));
  return result;
}

// The last known state of a rank.
struct Last {
  bool known = false;
  Doing doing;
};

inline std::string block(const Verdict &verdict, const std::vector<Last> &ranks,
                         const std::vector<std::string> &hosts, const std::string &stacks, double ceiling) {
  const int rank = verdict.rank, size = static_cast<int>(hosts.size());
  const char *host = hosts[rank].c_str();
  const std::string doing = words(verdict.cause == kSilent ? ranks[rank].doing : verdict.doing);
  const double seconds = verdict.doing.seconds;
  std::string report = text("### pipepar: rank %d of %d on %s ", rank, size, host);
  std::string remedy;
  switch (verdict.cause) {
    case kSilent:
      report += "sends no heartbeat\n";
      report += text("error: no heartbeat for %.1f s, at most %.1f s expected; stage %d was %s.", seconds,
                     verdict.limit, rank, doing.c_str());
      report += " It is stopped or has ended, or its host or network has failed\n";
      remedy = text("check %s and its network; if they may be away for longer, set PIPEPAR_SILENCE_SECONDS to more",
                    host);
      break;
    case kStuck:
      report += "waits, as all other ranks do\n";
      report += text("error: no rank has made progress for %.1f s, at most %.1f s expected; stage %d is %s\n", seconds,
                     verdict.limit, rank, doing.c_str());
      remedy = "a message was lost, or a GPU hangs: check the network, and on GPUs run with NCCL_DEBUG=INFO";
      break;
    default:
      report += "has stalled\n";
      report += text("error: stage %d has been %s for %.1f s, at most %.1f s expected; the other ranks wait for it\n",
                     rank, doing.c_str(), seconds, verdict.limit);
      remedy = text("its stacks show where it is; if it is only slow, set %s to more than it takes",
                    verdict.limit < ceiling ? "PIPEPAR_STALL_SECONDS" : "PIPEPAR_STALL_CEILING_SECONDS");
  }
  for (int other = 0; other < size && other < 32; ++other)
    if (other != rank && ranks[other].known)
      report += text("  rank %d on %s: %s for %.1f s\n", other, hosts[other].c_str(), words(ranks[other].doing).c_str(),
                     ranks[other].doing.seconds);
  return report + "stacks of all ranks: " + stacks + "\n" + remedy;
}

}  // namespace pulse
