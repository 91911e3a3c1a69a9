// The steps of the focal loss on a GPU: a thread takes several logits of one image in the order of memory. Sums are
// taken in a fixed order, so that a call gives the same bits every time.

#pragma once

#include "focal.h"

#include <cuda_runtime.h>

namespace detsearch::focal {

constexpr int kThreads = 256;

// One level's logits, and what it takes to know their targets.
template <typename T>
struct Level {
  Map map;
  const T* logits;
  const int64_t* matched;  // (images, priors)
  const int64_t* labels;   // (rows,)
  int64_t priors, rows;
  int64_t blocks;  // that share an image
  T alpha, gamma;
};

// Loss and slope of one logit. NaN where a row or a label is out of range: telling the host would stall it.
template <bool squares, typename T>
DETSEARCH_INLINE Term<T> term_of(const Level<T>& level, int64_t image, uint32_t offset) {
  const Place place = place_of(level.map, offset);
  const int64_t row = level.matched[image * level.priors + level.map.first + place.prior];
  const T logit = level.logits[image * level.map.per_image() + offset];
  if (row == kIgnored) return {T(0), T(0)};
  if (row == kBackground) {
    const Term<T> term = away<squares>(logit, level.gamma);
    return {(T(1) - level.alpha) * term.value, (T(1) - level.alpha) * term.slope};
  }
  const int64_t label = row >= 0 && row < level.rows ? level.labels[row] : -1;
  if (label < 0 || label >= level.map.classes) return {static_cast<T>(NAN), static_cast<T>(NAN)};
  const bool own = label == place.label;
  const Term<T> term = away<squares>(own ? -logit : logit, level.gamma);
  const T weight = own ? level.alpha : T(1) - level.alpha;
  return {weight * term.value, (own ? -weight : weight) * term.slope};
}

// Calls visit(image, offset) for the logits of this thread.
template <typename T, typename Visit>
__device__ void visit_own(const Level<T>& level, const Visit& visit) {
  const int64_t image = blockIdx.x / level.blocks, share = blockIdx.x % level.blocks;
  const int64_t step = level.blocks * blockDim.x, end = level.map.per_image();
  for (int64_t offset = share * blockDim.x + threadIdx.x; offset < end; offset += step)
    visit(image, static_cast<uint32_t>(offset));
}

// The sum over a block of kThreads, for thread 0.
__device__ inline double sum_of_block(double mine) {
  __shared__ double sums[kThreads];
  sums[threadIdx.x] = mine;
  __syncthreads();
  for (unsigned half = kThreads / 2; half > 0; half /= 2) {
    if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
    __syncthreads();
  }
  return sums[0];
}

template <typename T, bool squares>
__global__ void sum_level(Level<T> level, double* parts) {
  double mine = 0;
  visit_own(level, [&](int64_t image, uint32_t offset) {
    mine += static_cast<double>(term_of<squares>(level, image, offset).value);
  });
  const double sum = sum_of_block(mine);
  if (threadIdx.x == 0) parts[blockIdx.x] = sum;
}

// One block.
template <typename T>
__global__ void sum_parts(const double* parts, int64_t count, T* result) {
  double mine = 0;
  for (int64_t i = threadIdx.x; i < count; i += kThreads) mine += parts[i];
  const double sum = sum_of_block(mine);
  if (threadIdx.x == 0) *result = static_cast<T>(sum);
}

template <typename T, bool squares>
__global__ void fill_gradient(Level<T> level, const T* factor, T* out) {
  const T scale = *factor;
  visit_own(level, [&](int64_t image, uint32_t offset) {
    out[image * level.map.per_image() + offset] = scale * term_of<squares>(level, image, offset).slope;
  });
}

}  // namespace detsearch::focal
