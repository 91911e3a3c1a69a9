// The focal loss of one logit and its slope, and the prior of a logit; the same for CPU and CUDA.

#pragma once

#include "common/logits.h"

namespace detsearch::focal {

constexpr int64_t kBackground = -1, kIgnored = -2;  // in matched; else a row of the ground truths

// In float64 the library's functions do: nothing is chosen by this loss, so CPU and GPU need not round alike.
DETSEARCH_INLINE double exponential(double x) { return std::exp(x); }
DETSEARCH_INLINE double logarithm_above_1(double x) { return std::log1p(x); }
using detsearch::exponential;
using detsearch::logarithm_above_1;

template <typename T>
struct Term {
  T value, slope;
};

// p^gamma * -ln(1 - p) with p = sigmoid(x), the unweighted loss of a target 0, and its derivative. That of a target 1
// is the same at -x.
template <bool gamma_is_2, typename T>
DETSEARCH_INLINE Term<T> negative_focal(T x, T gamma) {
  // the exponent is never above 0, so nothing overflows and 1 - p keeps its digits at any logit
  const T e = exponential(x < T(0) ? x : -x), logarithm = logarithm_above_1(e), denominator = T(1) + e;
  const T p = (x < T(0) ? e : T(1)) / denominator, miss = (x < T(0) ? T(1) : e) / denominator;
  const T loss = (x < T(0) ? T(0) : x) + logarithm;
  // ln p = min(x, 0) - ln(1 + e): the logarithm of p itself would be infinite where p rounds to 0
  const T power = gamma_is_2 ? p * p : exponential(gamma * ((x < T(0) ? x : T(0)) - logarithm));
  return {power * loss, power * ((gamma_is_2 ? T(2) : gamma) * miss * loss + p)};
}

// The prior and the class of a logit, from its offset in an image.
struct LogitIndex {
  uint32_t prior, label;
};

DETSEARCH_INLINE LogitIndex logit_index(const LogitLayout& layout, uint32_t offset) {
  // 32 bits: a GPU divides 64 bits in a long sequence of instructions, and this is done for every logit
  const uint32_t classes = static_cast<uint32_t>(layout.classes), cells = static_cast<uint32_t>(layout.cells);
  if (layout.classes_last) return {offset / classes, offset % classes};
  const uint32_t channel = offset / cells, cell = offset % cells;
  return {cell * static_cast<uint32_t>(layout.shapes) + channel / classes, channel % classes};
}

}  // namespace detsearch::focal
