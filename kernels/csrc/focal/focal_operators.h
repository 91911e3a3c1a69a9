// The focal loss as operators, the same for CPU and CUDA: how their tensors are read and which types a call runs with.
// A Device gives
//   check(matched, labels, classes), where looking costs little
//   sum<T, gamma_is_2>(call, result)
//   gradient<T, gamma_is_2>(call, factor, results), a result for each of call.logits, lying in memory as that does
// gamma_is_2: for the usual gamma the power is a product, without exponential and logarithm.

#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <vector>

#include "focal/focal.h"

namespace detsearch::focal {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Tensors = std::vector<Tensor>;

struct Call {
  std::vector<LogitLayout> layouts;
  Tensors logits;
  Tensor matched, labels;
  double alpha, gamma;

  int64_t priors() const { return priors_of(layouts); }
};

template <typename Device>
Call read(const Tensors& logits, const Tensor& matched, const Tensor& labels, double alpha, double gamma) {
  const Call call{read_layouts(logits), logits, matched, labels, alpha, gamma};
  STD_TORCH_CHECK(matched.size(0) == call.layouts[0].images && matched.size(1) == call.priors(),
                  "matched must have a row an image and a column for each of ", call.priors(), " priors, got ",
                  matched.size(0), " x ", matched.size(1));
  Device::check(matched, labels, call.layouts[0].classes);
  return call;
}

// Calls work<T, gamma_is_2>() for the type of the logits.
template <typename Work>
void with_types(const Call& call, const Work& work) {
  const bool gamma_is_2 = call.gamma == 2.0;
  if (call.logits[0].scalar_type() == ScalarType::Double) {
    gamma_is_2 ? work.template operator()<double, true>() : work.template operator()<double, false>();
  } else {
    gamma_is_2 ? work.template operator()<float, true>() : work.template operator()<float, false>();
  }
}

template <typename Device>
Tensor sum(Tensors logits, Tensor matched, Tensor labels, double alpha, double gamma) {
  const Call call = read<Device>(logits, matched, labels, alpha, gamma);
  Tensor result = torch::stable::new_empty(logits[0], {});
  with_types(call, [&]<typename T, bool gamma_is_2>() { Device::template sum<T, gamma_is_2>(call, result); });
  return result;
}

template <typename Device>
Tensors gradient(Tensor factor, Tensors logits, Tensor matched, Tensor labels, double alpha, double gamma) {
  const Call call = read<Device>(logits, matched, labels, alpha, gamma);
  Tensors results;
  for (const Tensor& level : logits) results.push_back(torch::stable::empty_like(level));
  with_types(call,
             [&]<typename T, bool gamma_is_2>() { Device::template gradient<T, gamma_is_2>(call, factor, results); });
  return results;
}

template <typename Device>
void implement(torch::stable::detail::StableLibrary& m) {
  m.impl("focal_sum", TORCH_BOX(&sum<Device>));
  m.impl("focal_gradient", TORCH_BOX(&gradient<Device>));
}

}  // namespace detsearch::focal
