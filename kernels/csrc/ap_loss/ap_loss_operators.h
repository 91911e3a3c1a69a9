// The parameterized AP loss as operators: which types a call runs with, the same for CPU and CUDA. A Device gives
// `forward<T, Index>` and `backward<T, Index>`: T of the scores, Index of the bin that is kept of every score.

#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <tuple>

#include "ap_loss/ap_loss.h"

namespace detsearch::ap {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Outputs = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

template <typename Device>
Outputs forward(Tensor scores, Tensor positives, Tensor quality, Tensor knots, int64_t steps,
                bool through_denominator) {
  const Loss loss = read(knots.const_data_ptr<double>(), knots.size(0), positives.numel(), through_denominator);
  const bool few = check(loss, steps, positives.numel()) < kShortBins;
  if (scores.scalar_type() == ScalarType::Double) {
    return few ? Device::template forward<double, uint16_t>(scores, positives, quality, loss)
               : Device::template forward<double, int32_t>(scores, positives, quality, loss);
  }
  return few ? Device::template forward<float, uint16_t>(scores, positives, quality, loss)
             : Device::template forward<float, int32_t>(scores, positives, quality, loss);
}

template <typename Device>
Tensor backward(Tensor positives, Tensor bins, Tensor slopes, Tensor by_score, Tensor gradient) {
  const bool few = bins.element_size() == 2;
  if (slopes.scalar_type() == ScalarType::Double) {
    return few ? Device::template backward<double, uint16_t>(positives, bins, slopes, by_score, gradient)
               : Device::template backward<double, int32_t>(positives, bins, slopes, by_score, gradient);
  }
  return few ? Device::template backward<float, uint16_t>(positives, bins, slopes, by_score, gradient)
             : Device::template backward<float, int32_t>(positives, bins, slopes, by_score, gradient);
}

template <typename Device>
void implement(torch::stable::detail::StableLibrary& m) {
  m.impl("parameterized_ap_loss", TORCH_BOX(&forward<Device>));
  m.impl("parameterized_ap_loss_backward", TORCH_BOX(&backward<Device>));
}

}  // namespace detsearch::ap
