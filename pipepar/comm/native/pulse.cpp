// The extension module of the pulse; see pulse.hpp for how it works.

#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "orphan.hpp"
#include "pulse.hpp"

namespace nb = nanobind;

NB_MODULE(_pulse, module) {
  using pulse::Limits;
  using pulse::Pulse;
  nb::set_leak_warnings(false);  // a waiting thread may still own the pulse when Python exits
  const auto free = nb::call_guard<nb::gil_scoped_release>();
  module.def("addresses", &pulse::addresses);
  module.def("end_with_launcher", &pulse::end_with_launcher, nb::arg("signal"), nb::arg("launcher"),
             nb::arg("files"), nb::arg("both"));
  module.def("end_launcher", &pulse::end_launcher);
  nb::class_<Limits>(module, "Limits")
      .def(nb::init<double, double, double>(), nb::arg("silence"), nb::arg("floor"), nb::arg("ceiling"))
      .def("deadline", &Limits::deadline, nb::arg("longest"));
  nb::class_<Pulse>(module, "Pulse")
      .def(nb::init<int, std::vector<std::string>, std::uint64_t, Limits>(), nb::arg("rank"), nb::arg("hosts"),
           nb::arg("cookie"), nb::arg("limits"))
      .def_prop_ro("port", &Pulse::port)
      .def("meet", &Pulse::meet, nb::arg("rank"), nb::arg("addresses"), nb::arg("port"), nb::arg("process"))
      .def("start", &Pulse::start, nb::arg("signal"), nb::arg("stacks"), nb::arg("file"), nb::arg("files"))
      .def("enter", &Pulse::enter, nb::arg("kind"), nb::arg("index"), nb::arg("samples") = 0, nb::arg("count") = 0)
      .def("waits", &Pulse::waits, nb::arg("begins"))
      .def("waited", &Pulse::waited)
      .def("wait", &Pulse::wait, free)
      .def("claim", &Pulse::claim)
      .def("close", &Pulse::close, free);
}
