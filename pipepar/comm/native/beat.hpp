// What ranks tell each other beside MPI: a datagram a beat, which needs neither Python nor MPI.

#pragma once

#include <arpa/inet.h>
#include <fcntl.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "process.hpp"

namespace pulse {

// What a rank is doing; the numbers of DOINGS in pipepar/trace.py.
enum Kind : std::int32_t { kOther, kSource, kReceive, kCompute, kSend, kSink, kCaller };

inline bool is_work(std::int32_t kind) { return kind == kSource || kind == kCompute || kind == kSink; }

struct Doing {
  std::int32_t kind = kOther;
  std::int32_t waits = 0;    // for another rank
  std::int64_t index = 0;    // the micro-batch
  std::int64_t first = -1;   // its samples, -1 where they are not known
  std::int64_t last = -1;
  double seconds = 0;        // for how long already
};

enum Cause : std::int32_t { kNone, kStalled, kSilent, kStuck };

// Who is to blame for the end of the job. Final once the rank that tells the user has taken it up.
struct Verdict {
  std::int32_t cause = kNone;
  std::int32_t rank = 0;
  std::int32_t final = 0;
  std::int32_t reserved = 0;
  double limit = 0;  // seconds that it was given
  Doing doing;
};

struct Beat {
  std::uint64_t cookie = 0;  // the job's own; what does not carry it is not ours
  std::int32_t rank = 0;
  std::int32_t leaving = 0;  // no more beats will follow, and that is well
  std::int32_t dumped = 0;   // the stacks are written
  std::int32_t reserved = 0;
  double longest = 0;  // seconds of the longest work on one micro-batch known of, 0 for none yet
  Doing doing;
  Verdict verdict;
};

// Every IPv4 address of this host, but the loopback's.
inline std::vector<std::string> addresses() {
  std::vector<std::string> found;
  ifaddrs *first = nullptr;
  if (getifaddrs(&first) != 0) return found;
  for (const ifaddrs *each = first; each != nullptr; each = each->ifa_next) {
    if (each->ifa_addr == nullptr || each->ifa_addr->sa_family != AF_INET) continue;
    if ((each->ifa_flags & IFF_UP) == 0 || (each->ifa_flags & IFF_LOOPBACK) != 0) continue;
    char text[INET_ADDRSTRLEN];
    const auto *address = reinterpret_cast<const sockaddr_in *>(each->ifa_addr);
    if (inet_ntop(AF_INET, &address->sin_addr, text, sizeof text) != nullptr) found.emplace_back(text);
  }
  freeifaddrs(first);
  return found;
}

// A UDP socket at a port of the kernel's choice.
class Post {
 public:
  Post() : socket_(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)) {
    sockaddr_in here{};
    here.sin_family = AF_INET;
    here.sin_addr.s_addr = htonl(INADDR_ANY);
    if (socket_ < 0 || bind(socket_, reinterpret_cast<sockaddr *>(&here), sizeof here) != 0)
      throw std::runtime_error(std::string("no UDP socket for the watchdog: ") + std::strerror(errno));
  }
  Post(const Post &) = delete;
  Post &operator=(const Post &) = delete;
  ~Post() { ::close(socket_); }

  int descriptor() const { return socket_; }

  int port() const {
    sockaddr_in here{};
    socklen_t size = sizeof here;
    if (getsockname(socket_, reinterpret_cast<sockaddr *>(&here), &size) != 0) return 0;
    return ntohs(here.sin_port);
  }

  // A beat that is lost is a beat that the other does not hear: that is what it listens for.
  void send(const Beat &beat, const std::vector<sockaddr_in> &places) const {
    for (const sockaddr_in &place : places)
      (void)sendto(socket_, &beat, sizeof beat, 0, reinterpret_cast<const sockaddr *>(&place), sizeof place);
  }

  // The next beat that has come, of any length but a beat's own dropped; false for none.
  bool receive(Beat &beat) const {
    for (;;) {
      const ssize_t size = recv(socket_, &beat, sizeof beat, MSG_TRUNC);
      if (size == static_cast<ssize_t>(sizeof beat)) return true;
      // An unreachable peer is reported here, too; that is its silence.
      if (size < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return false;
    }
  }

 private:
  const int socket_;
};

inline sockaddr_in place(const std::string &address, int port) {
  sockaddr_in there{};
  there.sin_family = AF_INET;
  there.sin_port = htons(static_cast<std::uint16_t>(port));
  if (inet_pton(AF_INET, address.c_str(), &there.sin_addr) != 1)
    throw std::invalid_argument(address + " is no IPv4 address");
  return there;
}

// A rank that beats are exchanged with.
struct Peer {
  int rank = 0;
  std::vector<sockaddr_in> places;
  Process process;  // empty where it runs on another machine
  bool heard = false, left = false, dumped = false;
  double last = 0;  // when it was heard, lived seconds
};

}  // namespace pulse
