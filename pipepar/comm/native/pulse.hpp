// The pulse: a native thread of each rank that sends beats and detects silent and stalled ranks.
//
// Each rank sends a beat to its neighbours in the ring and to rank 0, several times in a second. A rank
// whose own work exceeds the timeout reports itself. A silent rank is reported by the ranks that no
// longer receive its beats. The thread takes no GIL and calls no MPI, so it also runs while Python or MPI
// hangs. Rank 0 receives all beats, so it prints the final report; if rank 0 is silent, rank 1 does.
//
// Times are in seconds that this thread has run. So while the process or the host is suspended, no
// timeout expires.

#pragma once

#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/eventfd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>

#include "beat.hpp"
#include "block.hpp"
#include "launcher.hpp"
#include "stacks.hpp"
#include "standing.hpp"

namespace pulse {

using Clock = std::chrono::steady_clock;

// The rank that prints the final report, as in comm/group/launcher.py, and the one that replaces it.
constexpr int kRoot = 0;
constexpr int kDeputy = kRoot + 1;

// Seconds.
constexpr double kGather = 1.2;        // to wait for the stacks of other ranks
constexpr double kGatherSilent = 0.5;  // to wait for those of a silent rank on another host
constexpr double kDeputyDelay = 0.5;   // until the deputy reports because rank 0 is silent
constexpr double kOthersDelay = 1.5;   // until any other rank reports
constexpr double kPython = 1.0;        // for Python to print the report
constexpr double kAbort = 4.0;         // for Python to abort the job after that
constexpr double kExit = 4.0;          // until a rank exits after another one has reported

class Pulse {
 public:
  Pulse(int rank, std::vector<std::string> hosts, std::uint64_t cookie, Limits limits)
      : rank_(rank), hosts_(std::move(hosts)), cookie_(cookie), limits_(limits), ranks_(hosts_.size()),
        bell_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {}
  ~Pulse() {
    close();
    ::close(bell_);
  }

  int port() const { return post_.port(); }

  // Adds a rank to exchange beats with; process is its id if it runs on this host, otherwise 0.
  void meet(int rank, const std::vector<std::string> &addresses, int port, int process) {
    Peer peer;
    peer.rank = rank;
    for (const std::string &address : addresses) peer.places.push_back(place(address, port));
    if (process > 0) peer.process = Process(process);
    peers_.push_back(std::move(peer));
  }

  void start(int signal, int descriptor, std::string file, std::string files) {
    stacks_ = Stacks(signal, descriptor, std::move(file), std::move(files));
    beat();  // only a rank whose first beat has arrived can become silent
    thread_ = std::thread([this] { run(); });
  }

  void enter(int kind, std::int64_t index, std::uintptr_t samples, std::int64_t count) {
    const auto *rows = reinterpret_cast<const std::int64_t *>(samples);
    standing_.enter(kind, index, count > 0 ? rows[0] : -1, count > 0 ? rows[count - 1] : -1);
  }
  void waits(bool begins) { standing_.waits(begins); }
  void waited() { standing_.waited(); }

  // Waits until this rank has to report; returns the text, or nothing if the pulse is closed first.
  std::string wait() {
    std::unique_lock<std::mutex> lock(mutex_);
    ready_.wait(lock, [this] { return stop_.load() || !block_.empty(); });
    return block_;
  }

  // Whether the caller has to print the report; false if the pulse has printed it.
  bool claim() {
    std::lock_guard<std::mutex> guard(mutex_);
    return !std::exchange(claimed_, true);
  }

  void close() {
    while (ending_.load()) std::this_thread::sleep_for(std::chrono::milliseconds(100));  // until _exit
    stop_.store(true);
    { std::lock_guard<std::mutex> guard(mutex_); }
    ready_.notify_all();
    const std::uint64_t one = 1;
    (void)!write(bell_, &one, sizeof one);
    if (thread_.joinable()) thread_.join();
  }

 private:
  static double since(Clock::time_point then) {
    return std::chrono::duration<double>(Clock::now() - then).count();
  }

  void run() {
    sigset_t signals;  // Signals are for Python's main thread.
    sigfillset(&signals);
    pthread_sigmask(SIG_BLOCK, &signals, nullptr);
    auto last = Clock::now();
    while (!stop_.load()) {
      pollfd inputs[] = {{post_.descriptor(), POLLIN, 0}, {bell_, POLLIN, 0}};
      const double rest = std::max(0.0, limits_.beat() - since(last));
      (void)poll(inputs, 2, static_cast<int>(rest * 1e3) + 1);
      listen();
      if (since(last) < limits_.beat()) continue;
      standing_.live(std::min(since(last), 2 * limits_.beat()));
      last = Clock::now();
      doing_ = standing_.look(limits_.beat());
      if (verdict_.cause == kNone) accuse(detect());
      if (verdict_.cause != kNone && !ending_ && since(accused_) >= report_delay()) end(true);
      beat();
      finish();
    }
    for (int time = 0; time < 3; ++time) beat(true);
  }

  void listen() {
    Beat beat;
    while (post_.receive(beat)) {
      if (beat.cookie != cookie_) continue;
      const auto peer = std::find_if(peers_.begin(), peers_.end(), [&](const Peer &p) { return p.rank == beat.rank; });
      if (peer == peers_.end()) continue;
      peer->heard = true;
      peer->left = beat.leaving != 0;
      peer->dumped = beat.dumped != 0;
      peer->last = standing_.lived();
      ranks_[peer->rank] = {true, beat.doing};
      standing_.learn(beat.longest);
      if (beat.verdict.cause == kNone || beat.verdict.rank < 0 || beat.verdict.rank >= size()) continue;
      if (beat.verdict.final != 0 && !ending_) {
        verdict_ = beat.verdict;
        end(false);
      } else {
        accuse(beat.verdict);
      }
    }
  }

  int size() const { return static_cast<int>(hosts_.size()); }

  void accuse(const Verdict &verdict) {
    if (verdict.cause == kNone || verdict_.cause != kNone) return;
    verdict_ = verdict;
    accused_ = Clock::now();
    beat();
    if (report_delay() == 0) end(true);
  }

  // Seconds until this rank reports, unless another rank does so before. Rank 0 reports at once. If
  // rank 0 is silent, rank 1 reports; if both are cut off, the first rank of the ring on this side does.
  double report_delay() const {
    const bool root_is_silent = verdict_.cause == kSilent && verdict_.rank == kRoot;
    if (rank_ == kRoot && !root_is_silent) return 0;
    const bool deputy = (rank_ == kDeputy && root_is_silent) || (silent(kRoot) && silent(rank_ - 1));
    return deputy ? kDeputyDelay : kOthersDelay;
  }

  double silence(const Peer &peer) const { return peer.heard && !peer.left ? standing_.lived() - peer.last : 0; }

  bool silent(int rank) const {
    return std::any_of(peers_.begin(), peers_.end(),
                       [&](const Peer &p) { return p.rank == rank && silence(p) > limits_.silence; });
  }

  Verdict detect() const {
    Verdict verdict;
    const double deadline = limits_.deadline(standing_.longest());
    const double limit = doing_.kind == kOther ? limits_.ceiling : deadline;
    if (doing_.waits == 0 && doing_.kind != kCaller && doing_.seconds > limit) {
      verdict.cause = kStalled, verdict.rank = rank_, verdict.doing = doing_, verdict.limit = limit;
      return verdict;
    }
    for (const Peer &peer : peers_) {
      if (!silent(peer.rank)) continue;
      verdict.cause = kSilent, verdict.rank = peer.rank, verdict.limit = limits_.silence;
      verdict.doing = ranks_[peer.rank].doing, verdict.doing.seconds = silence(peer);
      return verdict;
    }
    if (rank_ == kRoot && no_rank_moves(deadline)) {
      const auto begin = ranks_.begin();
      const auto blocked = std::find_if(begin, ranks_.end() - 1, [](const Last &r) { return r.doing.kind != kSend; });
      verdict.cause = kStuck, verdict.rank = static_cast<int>(blocked - begin), verdict.limit = deadline;
      verdict.doing = verdict.rank == rank_ ? doing_ : blocked->doing;
    }
    return verdict;
  }

  bool no_rank_moves(double deadline) const {
    const auto blocked = [&](const Doing &doing) { return doing.waits != 0 && doing.seconds > deadline; };
    return blocked(doing_) && std::all_of(peers_.begin(), peers_.end(), [&](const Peer &peer) {
      return peer.heard && !peer.left && blocked(ranks_[peer.rank].doing);
    });
  }

  void beat(bool leaving = false) {
    Beat beat;
    beat.cookie = cookie_, beat.rank = rank_, beat.leaving = leaving, beat.dumped = dumped_;
    beat.longest = standing_.longest(), beat.doing = doing_, beat.verdict = verdict_;
    ranks_[rank_] = {true, doing_};
    for (const Peer &peer : peers_) post_.send(beat, peer.places);
  }

  // Begins to abort the job: writes the stacks of this rank. If this rank reports, `finish` then waits
  // for those of the others.
  void end(bool reports) {
    reports_ = reports, ended_ = Clock::now(), ending_ = true;
    verdict_.final = 1;
    beat();
    end_launcher();
    continue_silent_rank();
    doing_ = standing_.look(limits_.beat());
    stacks_.write(text("=== rank %d of %d on %s: %s for %.1f s\n", rank_, size(), hosts_[rank_].c_str(),
                       words(doing_).c_str(), doing_.seconds));
    dumped_ = true;
    beat();
  }

  // A rank that was only stopped (SIGSTOP) can then write its stacks and end.
  void continue_silent_rank() const {
    for (const Peer &peer : peers_)
      if (verdict_.cause == kSilent && peer.rank == verdict_.rank && peer.process) peer.process.signal(SIGCONT);
  }

  // Passes the report to Python, and ends this rank if Python does not do so in time.
  void finish() {
    if (!ending_) return;
    const double passed = since(ended_);
    if (!reports_) {
      if (passed > kExit) _exit(1);
      return;
    }
    const bool all = std::all_of(peers_.begin(), peers_.end(), [&](const Peer &p) {
      return p.dumped || p.left || passed > (silent(p.rank) && !p.process ? kGatherSilent : kGather);
    });
    std::unique_lock<std::mutex> lock(mutex_);
    if (block_.empty() && all) {
      block_ = block(verdict_, ranks_, hosts_, stacks_.files(), limits_.ceiling);
      ready_since_ = Clock::now();
      ready_.notify_all();
    }
    if (block_.empty()) return;
    if (!claimed_ && since(ready_since_) > kPython) {
      claimed_ = true;
      const std::string output = "\n" + block_ + "\n";
      (void)!write(STDERR_FILENO, output.data(), output.size());
      printed_ = true;
    }
    if (since(ready_since_) > (printed_ ? kPython + 0.2 : kAbort)) _exit(1);
  }

  const int rank_;
  const std::vector<std::string> hosts_;
  const std::uint64_t cookie_;
  const Limits limits_;
  Standing standing_;
  Post post_;
  std::vector<Peer> peers_;
  std::vector<Last> ranks_;
  Doing doing_;
  Verdict verdict_;
  Clock::time_point accused_, ended_, ready_since_;
  std::atomic<bool> ending_{false};
  bool reports_ = false, dumped_ = false, printed_ = false;
  Stacks stacks_;
  const int bell_;
  std::mutex mutex_;  // guards the members below
  std::condition_variable ready_;
  std::string block_;
  bool claimed_ = false;
  std::atomic<bool> stop_{false};
  std::thread thread_;
};

}  // namespace pulse
