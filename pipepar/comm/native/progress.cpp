// The progress engine: MPI requests progress while the rank computes.
//
// MPI moves a message only inside MPI calls, and a rank that computes makes none. So one native
// thread calls MPI_Test on the requests under way, every few milliseconds, without the GIL. A Python
// thread that waits polls for itself, and the engine does not poll meanwhile. The engine sleeps while
// nothing is under way.
//
// The engine is not linked to an MPI library. mpi4py creates the requests; the engine receives their
// addresses and resolves MPI_Test from the library that mpi4py has loaded, so one build serves every
// MPI. It never reads handles or statuses, whose sizes differ between implementations.
//
// The engine also sends data that a GPU has yet to produce. A ticket may wait for a gate, such as a
// CUDA event; its persistent requests are started when the gate is open, whatever Python is doing.

#include <dlfcn.h>
#include <nanobind/nanobind.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>
#include <pthread.h>
#include <signal.h>

#include <algorithm>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "lane.hpp"

namespace nb = nanobind;

namespace progress {
namespace {

// Shorter than the usual period: a message that waits for a gate is in no buffer of the network yet.
constexpr Duration kGatePeriod = 200us;

Mpi resolve_mpi(const std::string &mpi_module) {
  // mpi4py loads libmpi with RTLD_LOCAL; the handle of its extension module finds the symbols.
  void *handle = dlopen(mpi_module.c_str(), RTLD_NOW | RTLD_NOLOAD);
  if (handle == nullptr)
    throw std::runtime_error("mpi4py is not loaded from " + mpi_module + "; import mpi4py.MPI first");
  const auto resolve = [&](const char *name) {
    void *symbol = dlsym(handle, name);
    if (symbol == nullptr)
      throw std::runtime_error(std::string("no ") + name + " is reachable through " + mpi_module);
    return symbol;
  };
  return {reinterpret_cast<decltype(Mpi::test)>(resolve("MPI_Test")),
          reinterpret_cast<decltype(Mpi::start)>(resolve("MPI_Start"))};
}

class Engine {
 public:
  Engine(const std::string &mpi_module, double period)
      : mpi_(resolve_mpi(mpi_module)),
        period_(seconds(period)),
        bell_(std::make_shared<Bell>()),
        thread_([this] { run(); }) {}

  ~Engine() { close(); }

  std::shared_ptr<Lane> lane(std::uintptr_t query) {
    auto lane = std::make_shared<Lane>(mpi_, reinterpret_cast<Query>(query), bell_);
    std::lock_guard<std::mutex> guard(lanes_mutex_);
    lanes_.push_back(lane);
    return lane;
  }

  void poll() {
    for (const auto &lane : live_lanes()) lane->poll();
  }

  // Calls a function in the engine's thread, and waits until it returns.
  int enter(std::uintptr_t function, std::uintptr_t argument) {
    std::unique_lock<std::mutex> lock(bell_->mutex);
    entry_ = {reinterpret_cast<Entry>(function), reinterpret_cast<void *>(argument), 0};
    bell_->rung.notify_all();
    entered_.wait(lock, [this] { return entry_.function == nullptr; });
    return entry_.result;
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
      call_entry();
      if (nothing_under_way()) {
        sleep_until_rung();
      } else {
        nap(gate_is_awaited() ? kGatePeriod : period_);
        // A caller that waits moves all messages that are started, but queries only its lane's gates.
        const bool awaited = bell_->waiters.load(std::memory_order_relaxed) > 0;
        for (const auto &lane : live_lanes())
          if (!awaited || lane->waits_for_gate()) lane->poll();
      }
    }
  }

  // Removes lanes that are idle and that only the engine still owns: they get no new tickets.
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

  bool gate_is_awaited() {
    std::lock_guard<std::mutex> guard(lanes_mutex_);
    return std::any_of(lanes_.begin(), lanes_.end(), [](const auto &lane) { return lane->waits_for_gate(); });
  }

  void nap(Duration period) {
    std::unique_lock<std::mutex> lock(bell_->mutex);
    bell_->rung.wait_for(lock, period, [this] { return bell_->stop.load() || entry_.function; });
  }

  void call_entry() {
    std::lock_guard<std::mutex> guard(bell_->mutex);
    if (entry_.function == nullptr) return;
    entry_.result = entry_.function(entry_.argument);
    entry_.function = nullptr;
    entered_.notify_all();
  }

  void sleep_until_rung() {
    std::unique_lock<std::mutex> lock(bell_->mutex);
    // The engine sets `asleep` before it checks for tickets, and `push` adds its ticket before it
    // checks `asleep`. So either the engine sees the ticket, or `push` wakes the engine.
    bell_->asleep.store(true, std::memory_order_seq_cst);
    bell_->rung.wait(lock, [this] { return bell_->stop.load() || entry_.function || !nothing_under_way(); });
    bell_->asleep.store(false, std::memory_order_seq_cst);
  }

  using Entry = int (*)(void *argument);
  struct {
    Entry function;
    void *argument;
    int result;
  } entry_{};  // guarded by the bell's mutex
  std::condition_variable entered_;

  const Mpi mpi_;
  const Duration period_;
  const std::shared_ptr<Bell> bell_;
  std::mutex lanes_mutex_;
  std::vector<std::shared_ptr<Lane>> lanes_;
  std::thread thread_;  // last: it uses all of the above
};

}  // namespace
}  // namespace progress

NB_MODULE(_progress, module) {
  using progress::Engine;
  using progress::Lane;
  nb::class_<Lane>(module, "Lane")
      .def("push", &Lane::push, nb::arg("requests"), nb::arg("gate") = 0)
      .def("wait", &Lane::wait, nb::arg("count"), nb::arg("timeout"), nb::call_guard<nb::gil_scoped_release>())
      .def("retract", &Lane::retract, nb::call_guard<nb::gil_scoped_release>())
      .def("poll", &Lane::poll, nb::call_guard<nb::gil_scoped_release>())
      .def_prop_ro("pushed", &Lane::pushed)
      .def_prop_ro("completed", &Lane::completed)
      .def_prop_ro("error", &Lane::error)
      .def_prop_ro("gate_error", &Lane::gate_error);
  nb::class_<Engine>(module, "Engine")
      .def(nb::init<const std::string &, double>(), nb::arg("mpi_module"), nb::arg("period"),
           nb::call_guard<nb::gil_scoped_release>())
      .def("lane", &Engine::lane, nb::arg("query") = 0)
      .def("poll", &Engine::poll, nb::call_guard<nb::gil_scoped_release>())
      .def("enter", &Engine::enter, nb::arg("function"), nb::arg("argument"),
           nb::call_guard<nb::gil_scoped_release>())
      .def("close", &Engine::close, nb::call_guard<nb::gil_scoped_release>());
}
