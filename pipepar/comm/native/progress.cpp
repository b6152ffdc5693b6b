// The progress engine: MPI requests move on while the rank computes.
//
// MPI moves a message only inside MPI calls, and a rank that multiplies matrices makes none. One
// native thread therefore calls MPI_Test on the requests under way, every few milliseconds, and never
// takes the GIL. A Python thread that waits polls for itself, and the engine stays out of its way.
// Where nothing is under way the engine sleeps until something is.
//
// The engine is linked to no MPI. mpi4py makes the requests; the engine gets their addresses and
// resolves MPI_Test from the library mpi4py has loaded, so one build serves every MPI. Handles and
// statuses are never looked into: their sizes differ between implementations.

#include <dlfcn.h>
#include <nanobind/nanobind.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>
#include <pthread.h>
#include <signal.h>
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
#include <string>
#include <thread>
#include <vector>

namespace nb = nanobind;
using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;
using Duration = Clock::duration;

namespace {

using Test = int (*)(void *request, int *flag, void *status);

// A waiting caller first spins, then yields its core, then sleeps in proportion to its wait so far.
constexpr int kWaitSpins = 64;
constexpr Duration kWaitYield = 100us;
constexpr int kWaitShare = 32;
constexpr Duration kWaitSleepMin = 10us;
constexpr Duration kWaitSleepMax = 1ms;

Test resolve_test(const std::string &mpi_module) {
  // mpi4py loads libmpi RTLD_LOCAL; its own extension module's handle still finds the symbols.
  void *handle = dlopen(mpi_module.c_str(), RTLD_NOW | RTLD_NOLOAD);
  if (handle == nullptr)
    throw std::runtime_error("mpi4py is not loaded from " + mpi_module + "; import mpi4py.MPI first");
  void *symbol = dlsym(handle, "MPI_Test");
  if (symbol == nullptr)
    throw std::runtime_error("no MPI_Test is reachable through " + mpi_module);
  return reinterpret_cast<Test>(symbol);
}

Duration seconds(double value) {
  return std::chrono::duration_cast<Duration>(std::chrono::duration<double>(value));
}

void sharpen_timers() {
  // The kernel may round a sleep up by 50 us, as long as the sleep itself.
  thread_local const int once = prctl(PR_SET_TIMERSLACK, 1000UL, 0, 0, 0);
  (void)once;
}

// Wakes the engine where it sleeps because nothing is under way.
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

// A queue of tickets, each a handful of requests, that complete in the order they were pushed.
class Lane {
 public:
  Lane(Test test, std::shared_ptr<Bell> bell) : test_(test), bell_(std::move(bell)) {}

  void push(std::vector<std::uintptr_t> requests) {
    {
      std::lock_guard<std::mutex> guard(queue_mutex_);
      queue_.push_back({std::move(requests), 0});
    }
    pushed_.fetch_add(1, std::memory_order_seq_cst);
    bell_->ring();
  }

  std::uint64_t pushed() const { return pushed_.load(std::memory_order_seq_cst); }
  std::uint64_t completed() const { return completed_.load(std::memory_order_acquire); }
  int error() const { return error_.load(std::memory_order_acquire); }
  bool idle() const { return completed() == pushed() || error() != 0; }

  // Tests the oldest tickets until one is not complete. Whoever comes while another thread is
  // testing leaves at once: MPI forbids two tests of one request, and one is enough.
  bool poll() {
    std::unique_lock<std::mutex> testing(testing_, std::try_to_lock);
    if (!testing.owns_lock() || error() != 0) return false;
    bool progressed = false;
    while (Ticket *ticket = oldest()) {
      while (ticket->done < ticket->requests.size()) {
        alignas(16) unsigned char status[256];
        int flag = 0;
        const int code = test_(reinterpret_cast<void *>(ticket->requests[ticket->done]), &flag, status);
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
        queue_.pop_front();
      }
      completed_.fetch_add(1, std::memory_order_release);
    }
    return progressed;
  }

  bool wait(std::uint64_t count, double timeout) {
    if (completed() >= count || error() != 0) return true;
    const Waiting waiting(*bell_);
    const auto begin = Clock::now();
    for (int round = 0;; ++round) {
      poll();
      if (completed() >= count || error() != 0) return true;
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
    std::lock_guard<std::mutex> testing(testing_);
    std::lock_guard<std::mutex> guard(queue_mutex_);
    pushed_.fetch_sub(queue_.size(), std::memory_order_seq_cst);
    queue_.clear();
  }

 private:
  struct Ticket {
    std::vector<std::uintptr_t> requests;
    std::size_t done;
  };

  struct Waiting {
    explicit Waiting(Bell &bell) : bell_(bell) { bell_.waiters.fetch_add(1, std::memory_order_relaxed); }
    ~Waiting() { bell_.waiters.fetch_sub(1, std::memory_order_relaxed); }
    Bell &bell_;
  };

  Ticket *oldest() {
    std::lock_guard<std::mutex> guard(queue_mutex_);
    return queue_.empty() ? nullptr : &queue_.front();
  }

  const Test test_;
  const std::shared_ptr<Bell> bell_;
  std::mutex testing_;      // held while requests are being tested
  std::mutex queue_mutex_;  // held for moments only, so that push never waits for a long test
  std::deque<Ticket> queue_;
  std::atomic<std::uint64_t> pushed_{0};
  std::atomic<std::uint64_t> completed_{0};
  std::atomic<int> error_{0};
};

class Engine {
 public:
  Engine(const std::string &mpi_module, double period)
      : test_(resolve_test(mpi_module)),
        period_(seconds(period)),
        bell_(std::make_shared<Bell>()),
        thread_([this] { run(); }) {}

  ~Engine() { close(); }

  std::shared_ptr<Lane> lane() {
    auto lane = std::make_shared<Lane>(test_, bell_);
    std::lock_guard<std::mutex> guard(lanes_mutex_);
    lanes_.push_back(lane);
    return lane;
  }

  void poll() {
    for (const auto &lane : live_lanes()) lane->poll();
  }

  void close() {
    bell_->stop.store(true);
    bell_->notify();
    if (thread_.joinable()) thread_.join();
  }

 private:
  void run() {
    sigset_t signals;  // Signals are for Python's main thread.
    sigfillset(&signals);
    pthread_sigmask(SIG_BLOCK, &signals, nullptr);
    while (!bell_->stop.load()) {
      if (nothing_under_way()) {
        sleep_until_rung();
      } else {
        nap();
        if (bell_->waiters.load(std::memory_order_relaxed) > 0) continue;
        poll();
      }
    }
  }

  // A lane that only the engine still holds can get no new ticket.
  std::vector<std::shared_ptr<Lane>> live_lanes() {
    std::lock_guard<std::mutex> guard(lanes_mutex_);
    lanes_.erase(std::remove_if(lanes_.begin(), lanes_.end(),
                                [](const auto &lane) { return lane.use_count() == 1 && lane->idle(); }),
                 lanes_.end());
    return lanes_;
  }

  bool nothing_under_way() {
    std::lock_guard<std::mutex> guard(lanes_mutex_);
    return std::all_of(lanes_.begin(), lanes_.end(), [](const auto &lane) { return lane->idle(); });
  }

  void nap() {
    std::unique_lock<std::mutex> lock(bell_->mutex);
    bell_->rung.wait_for(lock, period_, [this] { return bell_->stop.load(); });
  }

  void sleep_until_rung() {
    std::unique_lock<std::mutex> lock(bell_->mutex);
    // `asleep` is raised before the last look, and a push is counted before it looks at `asleep`:
    // one of the two sees the other.
    bell_->asleep.store(true, std::memory_order_seq_cst);
    bell_->rung.wait(lock, [this] { return bell_->stop.load() || !nothing_under_way(); });
    bell_->asleep.store(false, std::memory_order_seq_cst);
  }

  const Test test_;
  const Duration period_;
  const std::shared_ptr<Bell> bell_;
  std::mutex lanes_mutex_;
  std::vector<std::shared_ptr<Lane>> lanes_;
  std::thread thread_;  // last: it uses all of the above
};

}  // namespace

NB_MODULE(_progress, module) {
  nb::class_<Lane>(module, "Lane")
      .def("push", &Lane::push, nb::arg("requests"))
      .def("wait", &Lane::wait, nb::arg("count"), nb::arg("timeout"), nb::call_guard<nb::gil_scoped_release>())
      .def("retract", &Lane::retract, nb::call_guard<nb::gil_scoped_release>())
      .def("poll", &Lane::poll, nb::call_guard<nb::gil_scoped_release>())
      .def_prop_ro("pushed", &Lane::pushed)
      .def_prop_ro("completed", &Lane::completed)
      .def_prop_ro("error", &Lane::error);
  nb::class_<Engine>(module, "Engine")
      .def(nb::init<const std::string &, double>(), nb::arg("mpi_module"), nb::arg("period"),
           nb::call_guard<nb::gil_scoped_release>())
      .def("lane", &Engine::lane)
      .def("poll", &Engine::poll, nb::call_guard<nb::gil_scoped_release>())
      .def("close", &Engine::close, nb::call_guard<nb::gil_scoped_release>());
}
