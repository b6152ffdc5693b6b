// What a rank is doing and since when: written by its main thread, read by the pulse, without locks.

#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "beat.hpp"

namespace pulse {

// Timeouts in seconds; infinity for none.
struct Limits {
  Limits(double silence, double floor, double ceiling) : silence(silence), floor(floor), ceiling(ceiling) {}

  // Seconds between two beats.
  double beat() const { return std::clamp(silence / 20, 0.05, 0.5); }

  // The timeout for work on one micro-batch, given the longest known so far; 0 for none.
  double deadline(double longest) const {
    constexpr double kTimes = 30;
    return longest > 0 ? std::min(ceiling, std::max(floor, kTimes * longest)) : ceiling;
  }

  double silence, floor, ceiling;
};

class Standing {
 public:
  // For the main thread; no lock, no system call.
  void enter(int kind, std::int64_t index, std::int64_t first, std::int64_t last) {
    const double now = lived();
    const int before = kind_.load(std::memory_order_relaxed);
    if (is_work(before)) {
      own_longest_ = std::max({own_longest_, now - began_.load(std::memory_order_relaxed), kShortest});
      if (before == kCompute) learn(own_longest_);
    }
    const bool same = first < 0 && index == index_.load(std::memory_order_relaxed);
    const std::uint64_t version = version_.load(std::memory_order_relaxed);
    version_.store(version + 1, std::memory_order_relaxed);
    std::atomic_thread_fence(std::memory_order_release);
    kind_.store(kind, std::memory_order_relaxed);
    index_.store(index, std::memory_order_relaxed);
    began_.store(now, std::memory_order_relaxed);
    if (!same) {
      first_.store(first, std::memory_order_relaxed);
      last_.store(last, std::memory_order_relaxed);
    }
    version_.store(version + 2, std::memory_order_release);
  }

  // Called before and after a wait for other ranks, such as a collective call.
  void waits(bool begins) {
    waiting_.store(begins, std::memory_order_relaxed);
    waited();
    if (begins) waiting_since_.store(lived(), std::memory_order_relaxed);
  }

  // This rank has waited for another one until now.
  void waited() { waited_.store(lived(), std::memory_order_relaxed); }

  // For both threads. `lived` is the time that the pulse's thread has run.
  double lived() const { return lived_.load(std::memory_order_relaxed); }
  double longest() const { return longest_.load(std::memory_order_relaxed); }

  void learn(double seconds) {
    double known = longest();
    while (seconds > known && !longest_.compare_exchange_weak(known, seconds, std::memory_order_relaxed)) {
    }
  }

  // For the pulse's thread.
  void live(double seconds) { lived_.store(lived() + seconds, std::memory_order_relaxed); }

  // What the rank is doing. A wait that ended at most `2 * lately` seconds ago counts as still under way.
  Doing look(double lately) {
    Doing doing;
    const std::uint64_t version = version_.load(std::memory_order_acquire);
    doing.kind = kind_.load(std::memory_order_relaxed);
    doing.index = index_.load(std::memory_order_relaxed);
    doing.first = first_.load(std::memory_order_relaxed);
    doing.last = last_.load(std::memory_order_relaxed);
    const double now = lived(), began = began_.load(std::memory_order_relaxed);
    std::atomic_thread_fence(std::memory_order_acquire);
    if (version % 2 != 0 || version != version_.load(std::memory_order_relaxed)) {
      last_read_.seconds = 0;  // the main thread is changing the values
      return last_read_;
    }
    const double waited = waited_.load(std::memory_order_relaxed);
    const bool blocked = waiting_.load(std::memory_order_relaxed);
    const bool waits = doing.kind == kReceive || doing.kind == kSend || blocked ||
                       (waited > began && now - waited <= 2 * lately);
    if (!waits || last_read_.waits == 0) waits_since_ = now;
    doing.waits = waits;
    if (waits) {
      const double since = blocked ? waiting_since_.load(std::memory_order_relaxed) : waits_since_;
      doing.seconds = now - std::max(began, since);
    } else {
      doing.seconds = now - std::max(began, waited);
    }
    return last_read_ = doing;
  }

 private:
  static constexpr double kShortest = 1e-6;  // 0 would mean that nothing is known

  std::atomic<double> lived_{0};    // seconds
  std::atomic<double> longest_{0};  // of any rank, seconds
  std::atomic<std::uint64_t> version_{0};  // odd while the main thread writes the next five values
  std::atomic<std::int32_t> kind_{kOther};
  std::atomic<std::int64_t> index_{0}, first_{-1}, last_{-1};
  std::atomic<double> began_{0};
  std::atomic<bool> waiting_{false};
  std::atomic<double> waiting_since_{0}, waited_{0};
  double own_longest_ = 0;  // used by the main thread only
  double waits_since_ = 0;  // used by the pulse only: since when every read has shown a wait
  Doing last_read_;         // used by the pulse only
};

}  // namespace pulse
