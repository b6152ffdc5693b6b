// What a rank is at and for how long: written by its main thread in a few words, read by the pulse's.

#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "beat.hpp"

namespace pulse {

// How long what may take, seconds; infinity for ever.
struct Limits {
  Limits(double silence, double floor, double ceiling) : silence(silence), floor(floor), ceiling(ceiling) {}

  // Between two beats.
  double beat() const { return std::clamp(silence / 20, 0.05, 0.5); }

  // For work on one micro-batch, given the longest that is known of; 0 for none.
  double deadline(double longest) const {
    constexpr double kTimes = 30;
    return longest > 0 ? std::min(ceiling, std::max(floor, kTimes * longest)) : ceiling;
  }

  double silence, floor, ceiling;
};

class Standing {
 public:
  // The main thread's side: no lock, no system call.
  void enter(int kind, std::int64_t index, std::int64_t first, std::int64_t last) {
    const double now = lived();
    const int before = kind_.load(std::memory_order_relaxed);
    if (is_work(before)) {
      own_ = std::max({own_, now - began_.load(std::memory_order_relaxed), kLeast});
      if (before == kCompute) learn(own_);
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

  // Around what is over only when another rank has done its part.
  void waits(bool begins) {
    waiting_.store(begins, std::memory_order_relaxed);
    waited();
    if (begins) waiting_since_.store(lived(), std::memory_order_relaxed);
  }

  // Up to now this rank waited for another one.
  void waited() { waited_.store(lived(), std::memory_order_relaxed); }

  // Either side's.
  double lived() const { return lived_.load(std::memory_order_relaxed); }
  double longest() const { return longest_.load(std::memory_order_relaxed); }

  void learn(double seconds) {
    double known = longest();
    while (seconds > known && !longest_.compare_exchange_weak(known, seconds, std::memory_order_relaxed)) {
    }
  }

  // The pulse's side.
  void live(double seconds) { lived_.store(lived() + seconds, std::memory_order_relaxed); }

  // What the rank is at; `lately` is how long ago a wait may have been to count as one that lasts.
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
      seen_.seconds = 0;  // just on its way from one thing to the next
      return seen_;
    }
    const double waited = waited_.load(std::memory_order_relaxed);
    const bool blocked = waiting_.load(std::memory_order_relaxed);
    const bool waits = doing.kind == kReceive || doing.kind == kSend || blocked ||
                       (waited > began && now - waited <= 2 * lately);
    if (!waits || seen_.waits == 0) stands_ = now;
    doing.waits = waits;
    if (waits) {
      const double since = blocked ? waiting_since_.load(std::memory_order_relaxed) : stands_;
      doing.seconds = now - std::max(began, since);
    } else {
      doing.seconds = now - std::max(began, waited);
    }
    return seen_ = doing;
  }

 private:
  static constexpr double kLeast = 1e-6;  // what is learned is never nothing

  std::atomic<double> lived_{0};    // seconds, of the pulse's thread
  std::atomic<double> longest_{0};  // seconds, of any rank
  std::atomic<std::uint64_t> version_{0};  // odd while what follows is being written
  std::atomic<std::int32_t> kind_{kOther};
  std::atomic<std::int64_t> index_{0}, first_{-1}, last_{-1};
  std::atomic<double> began_{0};
  std::atomic<bool> waiting_{false};
  std::atomic<double> waiting_since_{0}, waited_{0};
  double own_ = 0;     // the main thread's
  double stands_ = 0;  // the pulse's: since when it has seen nothing but waiting
  Doing seen_;
};

}  // namespace pulse
