// The pulse: every rank tells its neighbours that it lives and what it is at, and listens for theirs.
//
// One native thread sends a beat every fraction of a second, and judges: a rank that is at its own work
// for too long says so of itself, since only it knows; of one that is silent, who listens for it says so.
// The thread takes no GIL and calls no MPI, so a rank that is stuck in either beats on. Beats go round the
// ring and to rank 0, which therefore sees all and tells the user; where rank 0 is the one, its neighbour.
//
// Time is what this thread lives through: while the whole process, or the machine, stands still, nobody
// grows older, and nobody is taken for silent because we were.

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

// The rank that reports; as in comm/group/launcher.py.
constexpr int kRoot = 0;
constexpr int kHeirOfRoot = kRoot + 1;

// Seconds.
constexpr double kGather = 1.2;      // for the others' stacks
constexpr double kCutOff = 0.5;      // for those of who is silent and cannot be woken from here
constexpr double kHeir = 0.5;        // until another one speaks where rank 0 cannot
constexpr double kAnybody = 1.5;     // until anybody does
constexpr double kPython = 1.0;      // for Python to take the block
constexpr double kAbort = 4.0;       // for the job to be ended in order, after that
constexpr double kBystander = 4.0;   // until a rank that was told ends by itself

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

  // Exchange beats with a rank; process is its id where it runs on this machine, else 0.
  void meet(int rank, const std::vector<std::string> &addresses, int port, int process) {
    Peer peer;
    peer.rank = rank;
    for (const std::string &address : addresses) peer.places.push_back(place(address, port));
    if (process > 0) peer.process = Process(process);
    peers_.push_back(std::move(peer));
  }

  void start(int signal, int descriptor, std::string file, std::string files) {
    stacks_ = Stacks(signal, descriptor, std::move(file), std::move(files));
    beat();  // who has been heard once is missed from then on
    thread_ = std::thread([this] { run(); });
  }

  void enter(int kind, std::int64_t index, std::uintptr_t samples, std::int64_t count) {
    const auto *rows = reinterpret_cast<const std::int64_t *>(samples);
    standing_.enter(kind, index, count > 0 ? rows[0] : -1, count > 0 ? rows[count - 1] : -1);
  }
  void waits(bool begins) { standing_.waits(begins); }
  void waited() { standing_.waited(); }

  // The block, once this rank is to tell the user; empty when the pulse is closed first.
  std::string wait() {
    std::unique_lock<std::mutex> lock(mutex_);
    told_.wait(lock, [this] { return stop_.load() || !block_.empty(); });
    return block_;
  }

  // Whether the caller, who has come as far as this, is the one to tell it.
  bool claim() {
    std::lock_guard<std::mutex> guard(mutex_);
    return !std::exchange(claimed_, true);
  }

  void close() {
    while (ending_.load()) std::this_thread::sleep_for(std::chrono::milliseconds(100));  // no way back
    stop_.store(true);
    { std::lock_guard<std::mutex> guard(mutex_); }
    told_.notify_all();
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
      pollfd ears[] = {{post_.descriptor(), POLLIN, 0}, {bell_, POLLIN, 0}};
      const double rest = std::max(0.0, limits_.beat() - since(last));
      (void)poll(ears, 2, static_cast<int>(rest * 1e3) + 1);
      listen();
      if (since(last) < limits_.beat()) continue;
      standing_.live(std::min(since(last), 2 * limits_.beat()));
      last = Clock::now();
      doing_ = standing_.look(limits_.beat());
      if (verdict_.cause == kNone) accuse(find());
      if (verdict_.cause != kNone && !ending_ && since(accused_) >= patience()) end(true);
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
    if (patience() == 0) end(true);
  }

  // Rank 0 speaks. Where it is silent, rank 1 does; where a cut leaves that one on the other side, too,
  // the first one on this side, by the order of the ring.
  double patience() const {
    const bool headless = verdict_.cause == kSilent && verdict_.rank == kRoot;
    if (rank_ == kRoot && !headless) return 0;
    const bool heir = (rank_ == kHeirOfRoot && headless) || (silent(kRoot) && silent(rank_ - 1));
    return heir ? kHeir : kAnybody;
  }

  double silence(const Peer &peer) const { return peer.heard && !peer.left ? standing_.lived() - peer.last : 0; }

  bool silent(int rank) const {
    return std::any_of(peers_.begin(), peers_.end(),
                       [&](const Peer &p) { return p.rank == rank && silence(p) > limits_.silence; });
  }

  Verdict find() const {
    Verdict verdict;
    const double deadline = limits_.deadline(standing_.longest());
    const double given = doing_.kind == kOther ? limits_.ceiling : deadline;
    if (doing_.waits == 0 && doing_.kind != kCaller && doing_.seconds > given) {
      verdict.cause = kStalled, verdict.rank = rank_, verdict.doing = doing_, verdict.limit = given;
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
    const auto stands = [&](const Doing &doing) { return doing.waits != 0 && doing.seconds > deadline; };
    return stands(doing_) && std::all_of(peers_.begin(), peers_.end(), [&](const Peer &peer) {
      return peer.heard && !peer.left && stands(ranks_[peer.rank].doing);
    });
  }

  void beat(bool leaving = false) {
    Beat beat;
    beat.cookie = cookie_, beat.rank = rank_, beat.leaving = leaving, beat.dumped = dumped_;
    beat.longest = standing_.longest(), beat.doing = doing_, beat.verdict = verdict_;
    ranks_[rank_] = {true, doing_};
    for (const Peer &peer : peers_) post_.send(beat, peer.places);
  }

  // The job is to end: everybody writes its stacks; who speaks waits for these.
  void end(bool speaks) {
    speaks_ = speaks, ended_ = Clock::now(), ending_ = true;
    verdict_.final = 1;
    beat();
    end_launcher();
    wake_accused();
    doing_ = standing_.look(limits_.beat());
    stacks_.write(text("=== rank %d of %d on %s: %s for %.1f s\n", rank_, size(), hosts_[rank_].c_str(),
                       words(doing_).c_str(), doing_.seconds));
    dumped_ = true;
    beat();
  }

  // Who was only stopped can say where, and ends as the others do.
  void wake_accused() const {
    for (const Peer &peer : peers_)
      if (verdict_.cause == kSilent && peer.rank == verdict_.rank && peer.process) peer.process.signal(SIGCONT);
  }

  // Ends this rank, whatever becomes of the orderly way.
  void finish() {
    if (!ending_) return;
    const double passed = since(ended_);
    if (!speaks_) {
      if (passed > kBystander) _exit(1);
      return;
    }
    const bool all = std::all_of(peers_.begin(), peers_.end(), [&](const Peer &p) {
      return p.dumped || p.left || passed > (silent(p.rank) && !p.process ? kCutOff : kGather);
    });
    std::unique_lock<std::mutex> lock(mutex_);
    if (block_.empty() && all) {
      block_ = block(verdict_, ranks_, hosts_, stacks_.files(), limits_.ceiling);
      handed_ = Clock::now();
      told_.notify_all();
    }
    if (block_.empty()) return;
    if (!claimed_ && since(handed_) > kPython) {
      claimed_ = true;
      const std::string said = "\n" + block_ + "\n";
      (void)!write(STDERR_FILENO, said.data(), said.size());
      ended_by_us_ = true;
    }
    if (since(handed_) > (ended_by_us_ ? kPython + 0.2 : kAbort)) _exit(1);
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
  Clock::time_point accused_, ended_, handed_;
  std::atomic<bool> ending_{false};
  bool speaks_ = false, dumped_ = false, ended_by_us_ = false;
  Stacks stacks_;
  const int bell_;
  std::mutex mutex_;  // guards what follows
  std::condition_variable told_;
  std::string block_;
  bool claimed_ = false;
  std::atomic<bool> stop_{false};
  std::thread thread_;
};

}  // namespace pulse
