// The steps of the parameterized AP loss on a GPU; ap_loss.cu says in which order they run. Every kernel takes any
// number of blocks, except write_loss.

#pragma once

#include <cuda_runtime.h>

#include "ap_loss/ap_loss.h"

namespace detsearch::ap {

constexpr int kThreads = 256;

// An element of a scan: two sums, and the rates at which they grow over the `width` to the next element.
struct RunningSums {
  double width, rate[2], sum[2];
};

// Joins neighbours of a scan. Associative, as cub asks: it joins in any grouping, so the last bits may differ from the
// CPU.
struct JoinRunningSums {
  __host__ __device__ RunningSums operator()(const RunningSums& before, const RunningSums& next) const {
    RunningSums both;
    both.width = before.width + next.width;
    for (int k = 0; k < 2; ++k) {
      both.rate[k] = before.rate[k] + next.rate[k];
      both.sum[k] = before.sum[k] + next.sum[k] + before.rate[k] * next.width;
    }
    return both;
  }
};

__device__ int64_t first_item() { return int64_t(blockIdx.x) * blockDim.x + threadIdx.x; }
__device__ int64_t item_step() { return int64_t(gridDim.x) * blockDim.x; }

// How many edges lie at or below a score; 0 for NaN.
template <typename T>
__device__ int64_t bin_of(const T* edges, int64_t count, T score) {
  // not score < edges[0], which is false for a NaN
  if (count == 0 || !(score >= edges[0])) return 0;
  int64_t low = 0, high = count;
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    if (edges[middle] <= score) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return low + 1;
}

template <typename T>
__global__ void make_thresholds(MergedKnots merged, const T* scores, int64_t n, const int64_t* positives,
                                const T* quality, int64_t rows, double* own, double* threshold, int32_t* owner,
                                int* wrong) {
  for (int64_t i = first_item(); i < rows; i += item_step()) {
    const bool inside = positives[i] >= 0 && positives[i] < n;
    double score = inside ? static_cast<double>(scores[positives[i]]) : 0.0;
    if (!inside || quality[i] != quality[i] || !(fabs(score) <= kFarthest)) {
      atomicOr(wrong, 1);
      score = 0.0;  // the kernels that follow run on, and must not meet a NaN among the thresholds they sort
    }
    own[i] = score;
    for (int k = 0; k < merged.steps; ++k) {
      threshold[i * merged.steps + k] = score + merged.offset[k];
      owner[i * merged.steps + k] = static_cast<int32_t>(i * merged.steps + k);
    }
  }
}

// The edges, and at which position each threshold is after sorting.
template <typename T>
__global__ void make_edges(const double* at, const int32_t* owner, int64_t count, T* edges, int32_t* position) {
  for (int64_t b = first_item(); b < count; b += item_step()) {
    edge_of(at[b], &edges[b]);
    position[owner[b]] = static_cast<int32_t>(b);
  }
}

// The bin of every score, counts and sums of the scores in the bins between two thresholds, and the count above all;
// `local`: each block collects in its own memory first.
template <typename T, typename Index>
__global__ void fill_bins(const T* scores, int64_t n, const T* edges, int64_t count, bool local, Index* bins,
                          double* sum, unsigned* number, int* wrong) {
  extern __shared__ double shared[];
  double* my_sum = sum;
  unsigned* my_number = number;
  const T* my_edges = edges;
  if (local) {
    my_sum = shared;
    // doubles first: in any other order they would not be aligned
    T* copy = reinterpret_cast<T*>(shared + count);
    my_number = reinterpret_cast<unsigned*>(copy + count);
    my_edges = copy;
    for (int64_t b = threadIdx.x; b < count; b += blockDim.x) {
      my_sum[b] = 0.0;
      my_number[b] = 0;
      copy[b] = edges[b];
    }
    __syncthreads();  // cleared before any thread adds
  }
  unsigned above = 0;  // by thread: one address for all of them would be a queue
  bool saw_nan = false;
  for (int64_t j = first_item(); j < n; j += item_step()) {
    const T score = scores[j];
    const int64_t bin = bin_of(my_edges, count, score);
    bins[j] = static_cast<Index>(bin);
    saw_nan |= score != score;
    // bin 0 and the last one have no excess that matters, and their scores may be infinite
    if (bin == count) {
      ++above;
    } else if (bin > 0) {
      atomicAdd(&my_sum[bin], static_cast<double>(score));
      atomicAdd(&my_number[bin], 1u);
    }
  }
  if (above) atomicAdd(&number[count], above);
  if (saw_nan) atomicOr(wrong, 1);
  if (!local) return;
  __syncthreads();  // all threads of the block have added
  for (int64_t b = threadIdx.x; b < count; b += blockDim.x) {
    if (my_number[b] == 0) continue;
    atomicAdd(&sum[b], my_sum[b]);
    atomicAdd(&number[b], my_number[b]);
  }
}

// By how much the positives of each bin weigh less than 1, and that times their scores.
template <typename T>
__global__ void weigh_positives(Curve others, const double* own, const T* quality, int64_t rows, const T* edges,
                                int64_t count, int32_t* bin, double* deficit, double* deficit_sum) {
  for (int64_t i = first_item(); i < rows; i += item_step()) {
    bin[i] = static_cast<int32_t>(bin_of(edges, count, static_cast<T>(own[i])));
    const double part = others.value(static_cast<double>(quality[i]));
    atomicAdd(&deficit[bin[i]], part);
    atomicAdd(&deficit_sum[bin[i]], part * own[i]);
  }
}

// The elements of the first scan, from the highest threshold down: the scores in the bin right of each.
__global__ void make_score_sums(const double* at, const double* sum, const unsigned* number, const double* deficit,
                                const double* deficit_sum, int64_t count, RunningSums* running) {
  for (int64_t r = first_item(); r < count; r += item_step()) {
    const int64_t b = count - 1 - r;
    const double all = static_cast<double>(number[b + 1]), weighted = all - deficit[b + 1];
    RunningSums sums = {0.0, {all, weighted}, {0.0, 0.0}};
    if (r > 0) {  // the bin above all thresholds counts, but has no excess
      sums.width = at[b + 1] - at[b];
      sums.sum[0] = at_least_0(sum[b + 1] - all * at[b]);
      sums.sum[1] = at_least_0((sum[b + 1] - deficit_sum[b + 1]) - weighted * at[b]);
    }
    running[r] = sums;
  }
}

__device__ SuffixSums suffix_sums_at(const RunningSums& sums) {
  return {sums.rate[0], sums.sum[0], sums.rate[1], sums.sum[1]};
}

template <typename T>
__global__ void make_rows(Loss loss, const RunningSums* running, const int32_t* position, const T* quality,
                          int64_t rows, int64_t count, Row* out) {
  const int64_t steps = loss.merged.steps;
  for (int64_t i = first_item(); i < rows; i += item_step()) {
    Sums sums = {0.0, 0.0, 0.0, 0.0};
    SuffixSums left = suffix_sums_at(running[count - 1 - position[i * steps]]);
    for (int64_t k = 0; k + 1 < steps; ++k) {
      const SuffixSums right = suffix_sums_at(running[count - 1 - position[i * steps + k + 1]]);
      sums.add(loss.merged, static_cast<int>(k), left, right);
      left = right;
    }
    out[i] = row_of(loss, sums, static_cast<double>(quality[i]));
  }
}

// The elements of the second scan, from the lowest threshold up: by how much each changes the slopes.
__global__ void make_changes(MergedKnots merged, const Row* row, const double* at, const int32_t* owner, int64_t count,
                             RunningSums* running) {
  for (int64_t b = first_item(); b < count; b += item_step()) {
    const int64_t i = owner[b] / merged.steps, k = owner[b] % merged.steps;
    const double above = merged.above[k] - (k ? merged.above[k - 1] : 0.0);
    const double rank = merged.rank[k] - (k ? merged.rank[k - 1] : 0.0);
    running[b] = {b ? at[b] - at[b - 1] : 0.0, {row[i].by_above * above, row[i].by_rank * rank}, {0.0, 0.0}};
  }
}

template <typename T>
__global__ void write_slopes(const RunningSums* columns, int64_t count, const int* wrong, T* slopes) {
  for (int64_t b = first_item(); b <= count; b += item_step()) {
    double slope = 0.0;  // below and above all thresholds nothing changes
    if (b > 0 && b < count) slope = columns[b - 1].rate[0] - columns[b - 1].rate[1];
    slopes[b] = *wrong ? static_cast<T>(NAN) : static_cast<T>(slope);
  }
}

template <typename T>
__global__ void write_positive_gradients(Loss loss, const Row* row, const RunningSums* columns, const double* at,
                                         const int32_t* bin, const double* own, const T* quality, int64_t rows,
                                         const int* wrong, T* by_score, T* by_quality) {
  for (int64_t i = first_item(); i < rows; i += item_step()) {
    const int64_t threshold = bin[i] > 0 ? bin[i] - 1 : 0;
    const RunningSums& sums = columns[threshold];
    const Column column = {sums.rate[0], sums.rate[1], sums.sum[0]};
    const double u = static_cast<double>(quality[i]), beyond = own[i] - at[threshold];
    by_score[i] = static_cast<T>(*wrong ? NAN : score_gradient(loss, row[i], column, u));
    by_quality[i] = static_cast<T>(*wrong ? NAN : quality_gradient(loss, row[i], column, u, beyond));
  }
}

// Adds the terms of all rows; launched as one block, which adds in the same order every time.
template <typename T>
__global__ void write_loss(const Row* row, int64_t rows, const int* wrong, T* value) {
  __shared__ double part[kThreads];
  double sum = 0.0;
  for (int64_t i = threadIdx.x; i < rows; i += kThreads) sum += row[i].value;
  part[threadIdx.x] = sum;
  for (int half = kThreads / 2; half > 0; half /= 2) {
    __syncthreads();  // before every round, which reads what other threads have written; the last is read by its writer
    if (threadIdx.x < half) part[threadIdx.x] += part[threadIdx.x + half];
  }
  if (threadIdx.x == 0) *value = static_cast<T>(*wrong ? NAN : part[0]);
}

// Without *wrong: then the slopes are NaN themselves.
template <typename T, typename Index>
__global__ void look_up_gradients(const Index* bins, int64_t n, const T* slopes, const T* factor, T* out) {
  for (int64_t j = first_item(); j < n; j += item_step()) out[j] = slopes[bins[j]] * *factor;
}

template <typename T>
__global__ void overwrite_positives(const int64_t* positives, const T* by_score, int64_t rows, int64_t n,
                                    const T* factor, T* out) {
  for (int64_t i = first_item(); i < rows; i += item_step()) {
    if (positives[i] >= 0 && positives[i] < n) out[positives[i]] = by_score[i] * *factor;
  }
}

}  // namespace detsearch::ap
