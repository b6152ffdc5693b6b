// A lane of the progress engine: a queue of tickets, each a group of MPI requests.

#pragma once

#include <sys/prctl.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <thread>
#include <utility>
#include <vector>

namespace progress {

using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;
using Duration = Clock::duration;

// The functions of the MPI that mpi4py has loaded.
struct Mpi {
  int (*test)(void *request, int *flag, void *status);
  int (*start)(void *request);
};

// Returns 0 for an open gate and kClosed for a closed one, as cudaEventQuery; others are errors.
using Query = int (*)(void *gate);
constexpr int kClosed = 600;  // cudaErrorNotReady

// A waiting caller first spins, then yields its core, then sleeps in proportion to its wait so far.
constexpr int kWaitSpins = 64;
constexpr Duration kWaitYield = 100us;
constexpr int kWaitShare = 32;
constexpr Duration kWaitSleepMin = 10us;
constexpr Duration kWaitSleepMax = 1ms;

inline Duration seconds(double value) {
  return std::chrono::duration_cast<Duration>(std::chrono::duration<double>(value));
}

inline void sharpen_timers() {
  // By default the kernel prolongs a sleep by up to 50 us, which is as long as the sleep itself.
  thread_local const int once = prctl(PR_SET_TIMERSLACK, 1000UL, 0, 0, 0);
  (void)once;
}

// Wakes the engine, which sleeps while nothing is under way.
struct Bell {
  std::mutex mutex;
  std::condition_variable rung;
  std::atomic<bool> asleep{false};
  std::atomic<bool> stop{false};
  std::atomic<int> waiters{0};

  void ring() {
    if (asleep.load(std::memory_order_seq_cst)) notify();
  }

  void notify() {
    { std::lock_guard<std::mutex> guard(mutex); }
    rung.notify_one();
  }
};

// A queue of tickets, each a group of requests, which complete in the order they were pushed.
//
// In a lane without a query, requests are active when they are pushed. In a lane with a query they
// are inactive, persistent requests. The lane starts those of a ticket when its gate is open and all
// earlier tickets are started. The kinds are not mixed, since requests that the caller has started
// would overtake those that still wait.
class Lane {
 public:
  Lane(Mpi mpi, Query query, std::shared_ptr<Bell> bell)
      : mpi_(mpi), query_(query), bell_(std::move(bell)) {}

  void push(std::vector<std::uintptr_t> requests, std::uintptr_t gate) {
    if (gate != 0 && query_ == nullptr)
      throw std::invalid_argument("a lane without a query has no gates");
    {
      std::lock_guard<std::mutex> guard(queue_mutex_);
      (query_ == nullptr ? started_ : waiting_).push_back({std::move(requests), 0, gate});
    }
    pushed_.fetch_add(1, std::memory_order_seq_cst);
    bell_->ring();
  }

  std::uint64_t pushed() const { return pushed_.load(std::memory_order_seq_cst); }
  std::uint64_t completed() const { return completed_.load(std::memory_order_acquire); }
  int error() const { return error_.load(std::memory_order_acquire); }
  int gate_error() const { return gate_error_.load(std::memory_order_acquire); }
  bool idle() const { return completed() == pushed() || failed(); }

  // Whether tickets wait to be started. Tests of other requests do not start them.
  bool waits_for_gate() { return oldest(waiting_) != nullptr; }

  // Starts tickets with open gates, then tests the oldest until one is not complete. Returns at once
  // if another thread is polling: MPI forbids concurrent tests of one request.
  bool poll() {
    std::unique_lock<std::mutex> polling(polling_, std::try_to_lock);
    if (!polling.owns_lock() || failed()) return false;
    bool progressed = start();
    while (Ticket *ticket = failed() ? nullptr : oldest(started_)) {
      while (ticket->done < ticket->requests.size()) {
        alignas(16) unsigned char status[256];
        int flag = 0;
        const int code = mpi_.test(reinterpret_cast<void *>(ticket->requests[ticket->done]), &flag, status);
        if (code != 0) {
          error_.store(code, std::memory_order_release);
          return true;
        }
        if (flag == 0) return progressed;
        progressed = true;
        ++ticket->done;
      }
      {
        std::lock_guard<std::mutex> guard(queue_mutex_);
        started_.pop_front();
      }
      completed_.fetch_add(1, std::memory_order_release);
    }
    return progressed;
  }

  bool wait(std::uint64_t count, double timeout) {
    if (settled(count)) return true;
    const Waiting waiting(*bell_);
    const auto begin = Clock::now();
    for (int round = 0;; ++round) {
      poll();
      if (settled(count)) return true;
      if (round < kWaitSpins) continue;
      const Duration waited = Clock::now() - begin;
      if (waited >= seconds(timeout)) return false;
      if (waited < kWaitYield) {
        std::this_thread::yield();
      } else {
        sharpen_timers();
        std::this_thread::sleep_for(std::clamp(waited / kWaitShare, kWaitSleepMin, kWaitSleepMax));
      }
    }
  }

  void retract() {
    std::lock_guard<std::mutex> polling(polling_);
    std::lock_guard<std::mutex> guard(queue_mutex_);
    pushed_.fetch_sub(started_.size() + waiting_.size(), std::memory_order_seq_cst);
    started_.clear();
    waiting_.clear();
  }

 private:
  struct Ticket {
    std::vector<std::uintptr_t> requests;
    std::size_t done;
    std::uintptr_t gate;  // 0 is always open
  };
  using Tickets = std::deque<Ticket>;

  struct Waiting {
    explicit Waiting(Bell &bell) : bell_(bell) { bell_.waiters.fetch_add(1, std::memory_order_relaxed); }
    ~Waiting() { bell_.waiters.fetch_sub(1, std::memory_order_relaxed); }
    Bell &bell_;
  };

  bool failed() const { return error() != 0 || gate_error() != 0; }

  // Whether to stop waiting for this many tickets: done, failed, or some were retracted.
  bool settled(std::uint64_t count) const { return completed() >= count || failed() || pushed() < count; }

  // The order of starts is the order on the wire, so a closed gate delays all later tickets.
  bool start() {
    bool progressed = false;
    while (Ticket *ticket = oldest(waiting_)) {
      const int state = ticket->gate == 0 ? 0 : query_(reinterpret_cast<void *>(ticket->gate));
      if (state == kClosed) return progressed;
      if (state != 0) {
        gate_error_.store(state, std::memory_order_release);
        return true;
      }
      for (const std::uintptr_t request : ticket->requests) {
        const int code = mpi_.start(reinterpret_cast<void *>(request));
        if (code != 0) {
          error_.store(code, std::memory_order_release);
          return true;
        }
      }
      std::lock_guard<std::mutex> guard(queue_mutex_);
      started_.push_back(std::move(*ticket));
      waiting_.pop_front();
      progressed = true;
    }
    return progressed;
  }

  Ticket *oldest(Tickets &tickets) {
    std::lock_guard<std::mutex> guard(queue_mutex_);
    return tickets.empty() ? nullptr : &tickets.front();
  }

  const Mpi mpi_;
  const Query query_;  // null in a plain lane
  const std::shared_ptr<Bell> bell_;
  std::mutex polling_;      // held while requests are started or tested and gates are queried
  std::mutex queue_mutex_;  // held briefly only, so that push never waits for a long test
  Tickets waiting_;         // not started yet
  Tickets started_;
  std::atomic<std::uint64_t> pushed_{0};
  std::atomic<std::uint64_t> completed_{0};
  std::atomic<int> error_{0};
  std::atomic<int> gate_error_{0};
};

}  // namespace progress
