// What the kernels of max-IoU, ATSS, FCOS and SimOTA share: the arguments of a batch, and offers. A prior keeps its
// best offer by an atomic minimum, so the order of blocks does not matter.

#pragma once

#include "common/grid_gpu.h"
#include "matchers/matchers.h"

namespace detsearch::gpu {

constexpr int kMatchThreads = 128;

// The arguments of all kernels. In `truth` the rows of an image lie together.
struct MatchArguments {
  DeviceGrid grid;
  const Box* truth;
  const int64_t* splits;
  int32_t rows, images;
  uint64_t* offers;  // images x priors; finish_offers turns them into the result in place

  __device__ int32_t image_of(int64_t row) const {
    int32_t low = 0, high = images;  // the last whose rows begin at or before it
    while (high - low > 1) {
      const int32_t between = (low + high) / 2;
      (splits[between] <= row ? low : high) = between;
    }
    return low;
  }
  // The rows of an image; splits that say otherwise must not lead out of memory.
  __device__ Span rows_of(int32_t image) const {
    const int64_t begin = splits[image], end = splits[image + 1];
    return {begin > 0 ? begin : 0, end < rows ? end : rows};
  }
  __device__ uint64_t* offer(int32_t image, int32_t prior) const {
    return offers + int64_t(image) * grid.priors + prior;
  }
};

// An offer to a prior, the lowest number for the best: one bit that says whether the IoU still decides, 31 bits of
// rank, 32 bits of the ground truth, so that of equal ranks the first one wins. The bit is the highest: a certain offer
// beats every uncertain one. kNone: no offer.
constexpr uint64_t kUncertain = uint64_t(1) << 63;

// floats from 0 on order as their bits do; inverted, the highest overlap is the lowest number
__device__ inline uint32_t inverted(float overlap) { return 0x7fffffffu - float_to_bits(overlap); }

__device__ inline uint64_t offer_of(uint32_t rank, int64_t g) {
  return static_cast<uint64_t>(rank) << 32 | static_cast<uint32_t>(g);
}

__device__ inline void lower(uint64_t* at, uint64_t value) {
  atomicMin(reinterpret_cast<unsigned long long*>(at), static_cast<unsigned long long>(value));
}

}  // namespace detsearch::gpu
