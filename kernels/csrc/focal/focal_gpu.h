// The steps of the focal loss on a GPU: a thread takes several logits of one image in the order of memory. Sums are
// taken in a fixed order, so that a call gives the same bits every time.

#pragma once

#include <cuda_runtime.h>

#include "focal/focal.h"

namespace detsearch::focal {

constexpr int kThreads = 256;

// The logits of one level, and what is needed to find their targets.
template <typename T>
struct LevelLogits {
  LogitLayout layout;
  const T* logits;
  const int64_t* matched;  // (images, priors)
  const int64_t* labels;   // (rows,)
  int64_t priors, rows;
  int64_t blocks;  // that share an image
  T alpha, gamma;
};

// Loss and slope of one logit. NaN where a row or a label is out of range: telling the host would stall it.
template <bool gamma_is_2, typename T>
DETSEARCH_INLINE Term<T> term_of(const LevelLogits<T>& level, int64_t image, uint32_t offset) {
  const LogitIndex at = logit_index(level.layout, offset);
  const int64_t row = level.matched[image * level.priors + level.layout.first + at.prior];
  const T logit = level.logits[image * level.layout.per_image() + offset];
  if (row == kIgnored) return {T(0), T(0)};
  if (row == kBackground) {
    const Term<T> term = negative_focal<gamma_is_2>(logit, level.gamma);
    return {(T(1) - level.alpha) * term.value, (T(1) - level.alpha) * term.slope};
  }
  const int64_t label = row >= 0 && row < level.rows ? level.labels[row] : -1;
  if (label < 0 || label >= level.layout.classes) return {static_cast<T>(NAN), static_cast<T>(NAN)};
  const bool own = label == at.label;
  const Term<T> term = negative_focal<gamma_is_2>(own ? -logit : logit, level.gamma);
  const T weight = own ? level.alpha : T(1) - level.alpha;
  return {weight * term.value, (own ? -weight : weight) * term.slope};
}

// Calls visit(image, offset) for the logits of this thread.
template <typename T, typename Visit>
__device__ void visit_own(const LevelLogits<T>& level, const Visit& visit) {
  const int64_t image = blockIdx.x / level.blocks, share = blockIdx.x % level.blocks;
  const int64_t step = level.blocks * blockDim.x, end = level.layout.per_image();
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

template <typename T, bool gamma_is_2>
__global__ void sum_level(LevelLogits<T> level, double* parts) {
  // float64, one sum a thread: atomics would add in another order every time
  double mine = 0;
  visit_own(level, [&](int64_t image, uint32_t offset) {
    mine += static_cast<double>(term_of<gamma_is_2>(level, image, offset).value);
  });
  const double sum = sum_of_block(mine);
  if (threadIdx.x == 0) parts[blockIdx.x] = sum;
}

// Adds the sums of all blocks; launched as one block.
template <typename T>
__global__ void sum_parts(const double* parts, int64_t count, T* result) {
  double mine = 0;
  for (int64_t i = threadIdx.x; i < count; i += kThreads) mine += parts[i];
  const double sum = sum_of_block(mine);
  if (threadIdx.x == 0) *result = static_cast<T>(sum);
}

template <typename T, bool gamma_is_2>
__global__ void fill_gradient(LevelLogits<T> level, const T* factor, T* out) {
  const T scale = *factor;  // read here: the host would wait for it
  visit_own(level, [&](int64_t image, uint32_t offset) {
    out[image * level.layout.per_image() + offset] = scale * term_of<gamma_is_2>(level, image, offset).slope;
  });
}

}  // namespace detsearch::focal
