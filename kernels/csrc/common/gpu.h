// What the operators on a GPU share: memory and the stream of a call, and sums and minima over a block.

#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <cstdint>

namespace detsearch::gpu {

using torch::stable::Tensor;

// Memory for a call, from torch's allocator. It may be given back while kernels that use it still wait in the stream:
// the allocator hands it out again only to what follows in the same stream.
template <typename T>
class Buffer {
 public:
  Buffer(const Tensor& like, int64_t count)
      : bytes_(torch::stable::new_empty(like, {std::max<int64_t>(count, 1) * int64_t(sizeof(T))},
                                        torch::headeronly::ScalarType::Byte)) {}
  T* get() const { return static_cast<T*>(bytes_.mutable_data_ptr()); }

 private:
  Tensor bytes_;
};

// The device of a tensor, while this lives, and the stream that torch uses there.
class Stream {
 public:
  explicit Stream(const Tensor& of) : guard_(of.get_device_index()) {
    void* stream = nullptr;
    // torch's stream, not the default one, where a kernel could begin before its operands are written
    // checked by hand: the macro for it is named otherwise in torch 2.11
    STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream(of.get_device_index(), &stream) == AOTI_TORCH_SUCCESS,
                    "torch names no current CUDA stream");
    stream_ = static_cast<cudaStream_t>(stream);
  }

  cudaStream_t get() const { return stream_; }

  // How many bytes of shared memory a block may ask for at most.
  int64_t max_shared_bytes() const {
    int device = 0, bytes = 0;
    STD_CUDA_CHECK(cudaGetDevice(&device));
    STD_CUDA_CHECK(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
    return bytes;
  }

  // Allows a kernel's blocks that many bytes of shared memory, which CUDA grants beyond 48 KiB only to kernels that are
  // named; false where the GPU has less.
  template <typename... Formal>
  bool allow_shared(void (*kernel)(Formal...), int64_t bytes) const {
    if (bytes > max_shared_bytes()) return false;
    STD_CUDA_CHECK(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                        cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)));
    return true;
  }

  template <typename... Formal, typename... Actual>
  void launch(void (*kernel)(Formal...), int64_t blocks, int threads, int64_t shared, Actual... arguments) const {
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(static_cast<unsigned>(blocks));
    config.blockDim = dim3(static_cast<unsigned>(threads));
    config.dynamicSmemBytes = static_cast<size_t>(shared);
    config.stream = stream_;
    // converted here: CUDA copies arguments as bytes, so an int where the kernel takes an int64_t would be misread
    STD_CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, static_cast<Formal>(arguments)...));
  }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_;
};

constexpr int kWarp = 32, kMaxWarps = 32;
constexpr unsigned kWholeWarp = 0xffffffffu;

// Memory in which the warps of a block exchange one number each.
union WarpPartials {
  int32_t number[kMaxWarps];
  uint64_t key[kMaxWarps];
};

// The sum over a block. All threads of the block must call it, and all get it. Blocks are whole warps.
__device__ inline int32_t sum_of_block(int32_t mine, WarpPartials& partials) {
  for (int step = kWarp / 2; step > 0; step /= 2) mine += __shfl_down_sync(kWholeWarp, mine, step);
  __syncthreads();  // all threads have read what the call before left in `partials`
  if (threadIdx.x % kWarp == 0) partials.number[threadIdx.x / kWarp] = mine;
  __syncthreads();
  int32_t sum = 0;  // by every thread, which spares a barrier and the way back from one thread to all
  for (unsigned warp = 0; warp < blockDim.x / kWarp; ++warp) sum += partials.number[warp];
  return sum;
}

// The least over a block, as sum_of_block.
__device__ inline uint64_t least_of_block(uint64_t mine, WarpPartials& partials) {
  for (int step = kWarp / 2; step > 0; step /= 2) {
    const uint64_t other = __shfl_down_sync(kWholeWarp, static_cast<unsigned long long>(mine), step);
    mine = other < mine ? other : mine;
  }
  __syncthreads();  // as in sum_of_block
  if (threadIdx.x % kWarp == 0) partials.key[threadIdx.x / kWarp] = mine;
  __syncthreads();
  uint64_t least = partials.key[0];
  for (unsigned warp = 1; warp < blockDim.x / kWarp; ++warp)
    least = partials.key[warp] < least ? partials.key[warp] : least;
  return least;
}

}  // namespace detsearch::gpu
