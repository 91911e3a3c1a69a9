// The steps of the parameterized AP loss on a GPU; ap_loss.cu says in which order they run. Every kernel takes any
// number of blocks, except give_loss.

#pragma once

#include "ap_loss.h"

#include <cuda_runtime.h>

namespace detsearch::ap {

constexpr int kThreads = 256;

// Two running sums and how fast they grow over the way to the next element.
struct Span {
  double width, rate[2], sum[2];
};

struct Join {
  __host__ __device__ Span operator()(const Span& before, const Span& next) const {
    Span both;
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
__global__ void make_thresholds(Ladder ladder, const T* scores, int64_t n, const int64_t* positives, const T* quality,
                                int64_t rows, double* own, double* threshold, int32_t* owner, int* wrong) {
  for (int64_t i = first_item(); i < rows; i += item_step()) {
    const bool inside = positives[i] >= 0 && positives[i] < n;
    double score = inside ? static_cast<double>(scores[positives[i]]) : 0.0;
    if (!inside || quality[i] != quality[i] || !(fabs(score) <= kFarthest)) {
      atomicOr(wrong, 1);
      score = 0.0;
    }
    own[i] = score;
    for (int k = 0; k < ladder.steps; ++k) {
      threshold[i * ladder.steps + k] = score + ladder.offset[k];
      owner[i * ladder.steps + k] = static_cast<int32_t>(i * ladder.steps + k);
    }
  }
}

// Edges, and where the thresholds went.
template <typename T>
__global__ void make_edges(const double* at, const int32_t* owner, int64_t count, T* edges, int32_t* place) {
  for (int64_t b = first_item(); b < count; b += item_step()) {
    edge_of(at[b], &edges[b]);
    place[owner[b]] = static_cast<int32_t>(b);
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
    T* copy = reinterpret_cast<T*>(shared + count);
    my_number = reinterpret_cast<unsigned*>(copy + count);
    my_edges = copy;
    for (int64_t b = threadIdx.x; b < count; b += blockDim.x) {
      my_sum[b] = 0.0;
      my_number[b] = 0;
      copy[b] = edges[b];
    }
    __syncthreads();
  }
  unsigned above = 0;
  bool bad = false;
  for (int64_t j = first_item(); j < n; j += item_step()) {
    const T score = scores[j];
    const int64_t bin = bin_of(my_edges, count, score);
    bins[j] = static_cast<Index>(bin);
    bad |= score != score;
    if (bin == count) {
      ++above;
    } else if (bin > 0) {
      atomicAdd(&my_sum[bin], static_cast<double>(score));
      atomicAdd(&my_number[bin], 1u);
    }
  }
  if (above) atomicAdd(&number[count], above);
  if (bad) atomicOr(wrong, 1);
  if (!local) return;
  __syncthreads();
  for (int64_t b = threadIdx.x; b < count; b += blockDim.x) {
    if (my_number[b] == 0) continue;
    atomicAdd(&sum[b], my_sum[b]);
    atomicAdd(&number[b], my_number[b]);
  }
}

// What positives weigh less than 1, in their bins.
template <typename T>
__global__ void weigh_positives(Curve others, const double* own, const T* quality, int64_t rows, const T* edges,
                                int64_t count, int32_t* bin, double* less, double* less_sum) {
  for (int64_t i = first_item(); i < rows; i += item_step()) {
    bin[i] = static_cast<int32_t>(bin_of(edges, count, static_cast<T>(own[i])));
    const double part = others.value(static_cast<double>(quality[i]));
    atomicAdd(&less[bin[i]], part);
    atomicAdd(&less_sum[bin[i]], part * own[i]);
  }
}

// From the highest threshold down: the scores right of each.
__global__ void make_spans(const double* at, const double* sum, const unsigned* number, const double* less,
                           const double* less_sum, int64_t count, Span* spans) {
  for (int64_t r = first_item(); r < count; r += item_step()) {
    const int64_t b = count - 1 - r;
    const double all = static_cast<double>(number[b + 1]), weighted = all - less[b + 1];
    Span span = {0.0, {all, weighted}, {0.0, 0.0}};
    if (r > 0) {
      span.width = at[b + 1] - at[b];
      span.sum[0] = at_least_0(sum[b + 1] - all * at[b]);
      span.sum[1] = at_least_0((sum[b + 1] - less_sum[b + 1]) - weighted * at[b]);
    }
    spans[r] = span;
  }
}

__device__ Prefix prefix_of(const Span& span) { return {span.rate[0], span.sum[0], span.rate[1], span.sum[1]}; }

template <typename T>
__global__ void make_rows(Loss loss, const Span* spans, const int32_t* place, const T* quality, int64_t rows,
                          int64_t count, Row* out) {
  const int64_t steps = loss.ladder.steps;
  for (int64_t i = first_item(); i < rows; i += item_step()) {
    Sums sums = {0.0, 0.0, 0.0, 0.0};
    Prefix left = prefix_of(spans[count - 1 - place[i * steps]]);
    for (int64_t k = 0; k + 1 < steps; ++k) {
      const Prefix right = prefix_of(spans[count - 1 - place[i * steps + k + 1]]);
      sums.add(loss.ladder, static_cast<int>(k), left, right);
      left = right;
    }
    out[i] = row_of(loss, sums, static_cast<double>(quality[i]));
  }
}

// From the lowest threshold up: by how much it changes the slopes.
__global__ void make_changes(Ladder ladder, const Row* row, const double* at, const int32_t* owner, int64_t count,
                             Span* spans) {
  for (int64_t b = first_item(); b < count; b += item_step()) {
    const int64_t i = owner[b] / ladder.steps, k = owner[b] % ladder.steps;
    const double above = ladder.above[k] - (k ? ladder.above[k - 1] : 0.0);
    const double rank = ladder.rank[k] - (k ? ladder.rank[k - 1] : 0.0);
    spans[b] = {b ? at[b] - at[b - 1] : 0.0, {row[i].by_above * above, row[i].by_rank * rank}, {0.0, 0.0}};
  }
}

template <typename T>
__global__ void give_slopes(const Span* columns, int64_t count, const int* wrong, T* slopes) {
  for (int64_t b = first_item(); b <= count; b += item_step()) {
    double slope = 0.0;  // below and above all thresholds nothing changes
    if (b > 0 && b < count) slope = columns[b - 1].rate[0] - columns[b - 1].rate[1];
    slopes[b] = *wrong ? static_cast<T>(NAN) : static_cast<T>(slope);
  }
}

template <typename T>
__global__ void give_positives(Loss loss, const Row* row, const Span* columns, const double* at, const int32_t* bin,
                               const double* own, const T* quality, int64_t rows, const int* wrong, T* by_score,
                               T* by_quality) {
  for (int64_t i = first_item(); i < rows; i += item_step()) {
    const int64_t threshold = bin[i] > 0 ? bin[i] - 1 : 0;
    const Span& span = columns[threshold];
    const Column column = {span.rate[0], span.rate[1], span.sum[0]};
    const double u = static_cast<double>(quality[i]), beyond = own[i] - at[threshold];
    by_score[i] = static_cast<T>(*wrong ? NAN : score_gradient(loss, row[i], column, u));
    by_quality[i] = static_cast<T>(*wrong ? NAN : quality_gradient(loss, row[i], column, u, beyond));
  }
}

// One block; always in the same order, so the same sum every time.
template <typename T>
__global__ void give_loss(const Row* row, int64_t rows, const int* wrong, T* value) {
  __shared__ double part[kThreads];
  double sum = 0.0;
  for (int64_t i = threadIdx.x; i < rows; i += kThreads) sum += row[i].value;
  part[threadIdx.x] = sum;
  for (int half = kThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) part[threadIdx.x] += part[threadIdx.x + half];
  }
  if (threadIdx.x == 0) *value = static_cast<T>(*wrong ? NAN : part[0]);
}

template <typename T, typename Index>
__global__ void look_up(const Index* bins, int64_t n, const T* slopes, const T* factor, T* out) {
  for (int64_t j = first_item(); j < n; j += item_step()) out[j] = slopes[bins[j]] * *factor;
}

template <typename T>
__global__ void place_positives(const int64_t* positives, const T* by_score, int64_t rows, int64_t n, const T* factor,
                                T* out) {
  for (int64_t i = first_item(); i < rows; i += item_step()) {
    if (positives[i] >= 0 && positives[i] < n) out[positives[i]] = by_score[i] * *factor;
  }
}

}  // namespace detsearch::ap
