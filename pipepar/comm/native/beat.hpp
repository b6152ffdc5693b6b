// A beat: the UDP datagram that ranks exchange, independently of Python and MPI.

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

// What a rank is doing; the values of DOINGS in pipepar/trace.py.
enum Kind : std::int32_t { kOther, kSource, kReceive, kCompute, kSend, kSink, kCaller };

inline bool is_work(std::int32_t kind) { return kind == kSource || kind == kCompute || kind == kSink; }

struct Doing {
  std::int32_t kind = kOther;
  std::int32_t waits = 0;    // 1 while it waits for another rank
  std::int64_t index = 0;    // of the micro-batch
  std::int64_t first = -1;   // first and last sample of the micro-batch, -1 if not known
  std::int64_t last = -1;
  double seconds = 0;        // since it began
};

enum Cause : std::int32_t { kNone, kStalled, kSilent, kStuck };

// Why the job ends and which rank caused it. Final once a rank has decided to report it to the user.
struct Verdict {
  std::int32_t cause = kNone;
  std::int32_t rank = 0;
  std::int32_t final = 0;
  std::int32_t reserved = 0;
  double limit = 0;  // the timeout that was exceeded, seconds
  Doing doing;
};

struct Beat {
  std::uint64_t cookie = 0;  // identifies the job; other datagrams are ignored
  std::int32_t rank = 0;
  std::int32_t leaving = 0;  // 1 if the rank ends normally and sends no more beats
  std::int32_t dumped = 0;   // 1 if the rank has written its stacks
  std::int32_t reserved = 0;
  double longest = 0;  // longest known work on one micro-batch, seconds; 0 for none yet
  Doing doing;
  Verdict verdict;
};

// All IPv4 addresses of this host, except those of the loopback interface.
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

// A UDP socket at a port that the kernel chooses.
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

  // Errors are ignored: the peer detects that beats are missing.
  void send(const Beat &beat, const std::vector<sockaddr_in> &places) const {
    for (const sockaddr_in &place : places)
      (void)sendto(socket_, &beat, sizeof beat, 0, reinterpret_cast<const sockaddr *>(&place), sizeof place);
  }

  // Reads the next beat; false if there is none. Datagrams of other lengths are dropped.
  bool receive(Beat &beat) const {
    for (;;) {
      const ssize_t size = recv(socket_, &beat, sizeof beat, MSG_TRUNC);
      if (size == static_cast<ssize_t>(sizeof beat)) return true;
      // Other errors report an unreachable peer, which is detected by its silence.
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

// A rank that this one exchanges beats with.
struct Peer {
  int rank = 0;
  std::vector<sockaddr_in> places;
  Process process;  // empty if it runs on another host
  bool heard = false, left = false, dumped = false;
  double last = 0;  // time of its last beat, in seconds of Standing::lived
};

}  // namespace pulse
