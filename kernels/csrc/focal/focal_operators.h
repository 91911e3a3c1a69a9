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

#include <array>
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
  int64_t priors;  // of all layouts
  double alpha, gamma;
};

// Whether the elements lie packed when the dimensions are taken in this order.
template <size_t N>
bool packed(const Tensor& tensor, const std::array<int64_t, N>& order) {
  int64_t step = 1;
  for (size_t i = N; i-- > 0; step *= tensor.size(order[i])) {
    // torch lets the stride of a dimension of one element be anything
    if (tensor.size(order[i]) != 1 && tensor.stride(order[i]) != step) return false;
  }
  return true;
}

// logits (B, A, C) or (B, H, W, S, C); the latter may lie in memory as (B, S, C, H, W).
inline LogitLayout read_layout(const Tensor& logits, int64_t first) {
  const int64_t last = logits.dim() - 1;
  STD_TORCH_CHECK(last == 2 || last == 4, "logits must be (B, A, C) or (B, H, W, S, C), got ", last + 1, " dimensions");
  LogitLayout layout{logits.size(0), logits.size(1), 1, logits.size(last), first, true};
  bool fits = true;
  if (last == 4) {
    layout.cells *= logits.size(2);
    layout.shapes = logits.size(3);
    layout.classes_last = packed<5>(logits, {0, 1, 2, 3, 4});
    fits = layout.classes_last || packed<5>(logits, {0, 3, 4, 1, 2});
  } else {
    fits = packed<3>(logits, {0, 1, 2});
  }
  STD_TORCH_CHECK(fits, "logits must lie packed in memory, as (B, A, C), (B, H, W, S, C) or (B, S, C, H, W)");
  return layout;
}

template <typename Device>
Call read(const Tensors& logits, const Tensor& matched, const Tensor& labels, double alpha, double gamma) {
  Call call{{}, logits, matched, labels, 0, alpha, gamma};
  for (const Tensor& level : logits) {
    call.layouts.push_back(read_layout(level, call.priors));
    call.priors += call.layouts.back().priors();
    const LogitLayout &layout = call.layouts.back(), &other = call.layouts.front();
    STD_TORCH_CHECK(layout.images == other.images && layout.classes == other.classes,
                    "levels must have the same images and classes, got ", layout.images, " and ", layout.classes,
                    " after ", other.images, " and ", other.classes);
  }
  STD_TORCH_CHECK(!logits.empty() && matched.size(0) == call.layouts[0].images && matched.size(1) == call.priors,
                  "matched must have a row an image and a column for each of ", call.priors, " priors, got ",
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
