// As much of CUDA as the kernels of assign.cu, matchers.cu, simota.cu, focal.cu and ap_loss.cu use, on a CPU. The
// threads of a block are fibers of one thread, which run in a random order from one barrier to the next. So the indices
// of a kernel, the barriers and the effect of every order are tested where there is no GPU. Speed and the memory model
// are not.

#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <numeric>
#include <random>
#include <utility>
#include <vector>

#define __global__ inline
#define __host__
#define __device__
#define __shared__ thread_local
#define __grid_constant__
#define __launch_bounds__(...)

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  dim3() = default;
  explicit dim3(unsigned width) : x(width) {}
};

inline dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulation {

constexpr size_t kStack = 1 << 16, kMaxThreads = 1024;

struct Barrier {
  unsigned arrived = 0, number = 0;
};

// A fiber begins by ucontext; every other switch is a jump, which unlike it makes no call of the system. It runs the
// kernel of one block after another.
struct Fiber {
  ucontext_t begin;
  jmp_buf waiting;
  bool started = false, done = false;
};

struct Block {
  std::vector<Fiber> thread{kMaxThreads};
  std::vector<char> stacks = std::vector<char>(kStack * kMaxThreads);
  std::function<void()> kernel;
  ucontext_t outside;
  jmp_buf scheduler;
  Barrier all, warp[kMaxThreads / 32], half[kMaxThreads / 16];
  uint64_t sent[kMaxThreads];  // what each thread passes to the others in an exchange
  bool progressed;  // a thread ended or a barrier opened since the scheduler last began with the first thread
};

inline Block block;

inline void yield_to_scheduler() {
  if (_setjmp(block.thread[threadIdx.x].waiting) == 0) _longjmp(block.scheduler, 1);
}

inline void run_thread() {
  while (true) {
    block.kernel();
    block.thread[threadIdx.x].done = block.progressed = true;
    yield_to_scheduler();
  }
}

inline void wait_at(Barrier& barrier, unsigned expected) {
  const unsigned number = barrier.number;
  if (++barrier.arrived == expected) {
    barrier.arrived = 0;
    ++barrier.number;
    block.progressed = true;
  }
  while (barrier.number == number) yield_to_scheduler();
}

// The threads that a mask names: a warp or half of one.
inline void wait_at(unsigned mask) {
  if (mask == 0xffffffffu) {
    wait_at(block.warp[threadIdx.x / 32], 32);
  } else if (mask == 0xffffu << (threadIdx.x & 16)) {
    wait_at(block.half[threadIdx.x / 16], 16);
  } else {
    std::fprintf(stderr, "mask %x of thread %u\n", mask, threadIdx.x);
    std::abort();
  }
}

template <typename T>
T exchange(unsigned mask, T mine, unsigned from) {
  block.sent[threadIdx.x] = 0;
  std::memcpy(&block.sent[threadIdx.x], &mine, sizeof mine);
  wait_at(mask);
  T received;
  std::memcpy(&received, &block.sent[from], sizeof received);
  wait_at(mask);
  return received;
}

// Lets a thread run until it waits or ends.
inline void resume(unsigned i) {
  threadIdx.x = i;
  Fiber& fiber = block.thread[i];
  if (_setjmp(block.scheduler) != 0) return;
  if (fiber.started) _longjmp(fiber.waiting, 1);
  fiber.started = true;
  getcontext(&fiber.begin);
  fiber.begin.uc_stack.ss_sp = block.stacks.data() + kStack * i;
  fiber.begin.uc_stack.ss_size = kStack;
  makecontext(&fiber.begin, run_thread, 0);
  swapcontext(&block.outside, &fiber.begin);
}

// Runs one block of block.kernel.
inline void run_block(std::minstd_rand& random) {
  std::vector<unsigned> order(blockDim.x);
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), random);
  for (const unsigned i : order) block.thread[i].done = false;
  do {
    block.progressed = false;
    for (const unsigned i : order) {
      if (!block.thread[i].done) resume(i);
    }
  } while (block.progressed);
  if (std::all_of(order.begin(), order.end(), [](unsigned i) { return block.thread[i].done; })) return;
  std::fprintf(stderr, "threads wait for each other for ever\n");
  std::abort();
}

}  // namespace emulation

using cudaStream_t = void*;
using cudaError_t = int;
enum { cudaDevAttrMaxSharedMemoryPerBlockOptin, cudaFuncAttributeMaxDynamicSharedMemorySize };

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
};

inline cudaError_t cudaGetDevice(int* device) { return *device = 0; }
inline cudaError_t cudaDeviceGetAttribute(int* value, int, int) { return *value = 1 << 16, 0; }
inline cudaError_t cudaFuncSetAttribute(const void*, int, int) { return 0; }
inline cudaError_t cudaMemsetAsync(void* memory, int byte, size_t bytes, cudaStream_t) {
  return std::memset(memory, byte, bytes), 0;
}

// Blocks in a random order, too.
template <typename... Formal, typename... Actual>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Formal...), Actual... arguments) {
  static std::minstd_rand random(1);
  gridDim = config->gridDim;
  blockDim = config->blockDim;
  std::vector<unsigned> order(gridDim.x);
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), random);
  emulation::block.kernel = [&] { kernel(arguments...); };
  for (const unsigned i : order) {
    blockIdx.x = i;
    emulation::run_block(random);
  }
  return 0;
}

inline void __syncthreads() { emulation::wait_at(emulation::block.all, blockDim.x); }

inline int __syncthreads_or(int mine) {
  emulation::block.sent[threadIdx.x] = mine != 0;
  __syncthreads();
  int any = 0;
  for (unsigned i = 0; i < blockDim.x; ++i) any |= static_cast<int>(emulation::block.sent[i]);
  __syncthreads();
  return any;
}

template <typename T>
T __shfl_down_sync(unsigned mask, T mine, unsigned step, unsigned width = 32) {
  const unsigned i = threadIdx.x;
  return emulation::exchange(mask, mine, i % width + step < width ? i + step : i);
}

template <typename T>
T __shfl_sync(unsigned mask, T mine, unsigned lane) {
  return emulation::exchange(mask, mine, threadIdx.x / 32 * 32 + lane);
}

inline unsigned __ballot_sync(unsigned mask, bool mine) {
  unsigned votes = 0;
  for (unsigned lane = 0; lane < 32; ++lane) votes |= unsigned(__shfl_sync(mask, mine, lane)) << lane;
  return votes;
}

inline int __popc(unsigned value) { return __builtin_popcount(value); }

template <typename T>
T atomicAdd(T* at, T more) {
  return std::exchange(*at, *at + more);
}

template <typename T>
T atomicSub(T* at, T less) {
  return std::exchange(*at, *at - less);
}

template <typename T>
T atomicOr(T* at, T bits) {
  return std::exchange(*at, *at | bits);
}

template <typename T>
T atomicMin(T* at, T other) {
  return std::exchange(*at, std::min(*at, other));
}

using std::max;
using std::min;
