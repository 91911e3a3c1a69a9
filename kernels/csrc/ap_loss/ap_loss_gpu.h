// The steps of the parameterized AP loss on a GPU; ap_loss.cu says in which order they run. Every kernel takes any
// number of blocks, except write_loss.

#pragma once

#include <cuda_runtime.h>

#include "ap_loss/ap_loss.h"
#include "common/logits.h"

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

// Before read_own: what stays where no level has a positive.
__global__ void clear_own(int64_t rows, double* own, int64_t* place) {
  for (int64_t i = first_item(); i < rows; i += item_step()) {
    own[i] = NAN;
    place[i] = -1;
  }
}

// The scores of the positives in one level. begin: where the level lies when all are laid one after the other.
template <typename T>
__global__ void read_own(LogitLayout layout, int64_t all_priors, int64_t begin, const T* scores,
                         const int64_t* positives, int64_t rows, double* own, int64_t* place) {
  for (int64_t i = first_item(); i < rows; i += item_step()) {
    if (positives[i] < 0) continue;  // rounding towards 0 would find it in the first row
    const int64_t first = layout.find(positives[i] / layout.classes, all_priors);
    if (first < 0) continue;
    const int64_t at = first + positives[i] % layout.classes * layout.class_stride();
    own[i] = static_cast<double>(scores[at]);
    place[i] = begin + at;
  }
}

// Sets *wrong where a row is none of `all`.
__global__ void find_outside(const int64_t* ignored, int64_t rows, int64_t all, int* wrong) {
  for (int64_t i = first_item(); i < rows; i += item_step()) {
    if (ignored[i] < 0 || ignored[i] >= all) atomicOr(wrong, 1);
  }
}

// Sets *wrong where a positive cannot be used, or the totals say that a score is NaN.
__global__ void find_wrong(const double* own, const double* quality, int64_t rows, const double* totals, int* wrong) {
  for (int64_t i = first_item(); i < rows; i += item_step()) {
    if (!(fabs(own[i]) <= kFarthest) || quality[i] != quality[i]) atomicOr(wrong, 1);
  }
  if (first_item() == 0 && totals[0] != totals[0]) atomicOr(wrong, 1);
}

__global__ void make_thresholds(MergedKnots merged, const double* own, int64_t rows, double* threshold,
                                int32_t* owner) {
  for (int64_t i = first_item(); i < rows; i += item_step()) {
    for (int k = 0; k < merged.steps; ++k) {
      threshold[i * merged.steps + k] = usable(own[i]) + merged.offset[k];
      owner[i * merged.steps + k] = static_cast<int32_t>(i * merged.steps + k);
    }
  }
}

template <typename T>
__global__ void make_edges(const double* at, int64_t count, T* edges) {
  for (int64_t b = first_item(); b < count; b += item_step()) edge_of(at[b], &edges[b]);
}

// At which position each threshold is after sorting.
__global__ void find_positions(const int32_t* owner, int64_t count, int32_t* position) {
  for (int64_t b = first_item(); b < count; b += item_step()) position[owner[b]] = static_cast<int32_t>(b);
}

extern __shared__ double shared_bins[];

// The bin of every score, counts and sums of the scores in the bins between two thresholds, and the count above all;
// `local`: each block collects in its own memory first.
template <typename T, typename Index>
__global__ void fill_bins(const T* scores, int64_t n, const T* edges, int64_t count, bool local, Index* bins,
                          double* sum, unsigned* number, int* wrong) {
  double* my_sum = sum;
  unsigned* my_number = number;
  const T* my_edges = edges;
  if (local) {
    my_sum = shared_bins;
    // doubles first: in any other order they would not be aligned
    T* copy = reinterpret_cast<T*>(shared_bins + count);
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

// Takes the scores of ignored rows, distinct ones, out of one level's bins: into the lowest bin, which adds nothing and
// has no slope.
template <typename T, typename Index>
__global__ void leave_out(LogitLayout layout, int64_t all_priors, const T* scores, const int64_t* ignored, int64_t rows,
                          int64_t count, Index* bins, double* sum, unsigned* number) {
  for (int64_t item = first_item(); item < rows * layout.classes; item += item_step()) {
    const int64_t first = layout.find(ignored[item / layout.classes], all_priors);
    if (first < 0) continue;
    const int64_t at = first + item % layout.classes * layout.class_stride(), bin = bins[at];
    bins[at] = Index(0);
    if (bin == 0) continue;
    atomicSub(&number[bin], 1u);
    if (bin < count) atomicAdd(&sum[bin], -static_cast<double>(scores[at]));
  }
}

// NaN everywhere where *wrong: added up over processes it tells each of them.
__global__ void write_totals(const double* sum, const unsigned* number, int64_t count, const int* wrong,
                             double* totals) {
  for (int64_t b = first_item(); b <= count; b += item_step()) {
    totals[b] = *wrong ? NAN : static_cast<double>(number[b]);
    totals[count + 1 + b] = *wrong ? NAN : sum[b];
  }
}

// By how much the positives of each bin weigh less than 1, and that times their scores.
__global__ void weigh_positives(Curve others, const double* own, const double* quality, int64_t rows, const double* at,
                                int64_t count, int32_t* bin, double* deficit, double* deficit_sum) {
  for (int64_t i = first_item(); i < rows; i += item_step()) {
    bin[i] = static_cast<int32_t>(bin_of(at, count, own[i]));
    const double part = others.value(quality[i]);
    atomicAdd(&deficit[bin[i]], part);
    atomicAdd(&deficit_sum[bin[i]], part * own[i]);
  }
}

// The elements of the first scan, from the highest threshold down: the scores in the bin right of each.
__global__ void make_score_sums(const double* at, const double* totals, const double* deficit,
                                const double* deficit_sum, int64_t count, RunningSums* running) {
  const double *number = totals, *sum = totals + count + 1;
  for (int64_t r = first_item(); r < count; r += item_step()) {
    const int64_t b = count - 1 - r;
    const double all = number[b + 1], weighted = all - deficit[b + 1];
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

__global__ void make_rows(Loss loss, const RunningSums* running, const int32_t* position, const double* quality,
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
    out[i] = row_of(loss, sums, quality[i]);
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

__global__ void write_slopes(const RunningSums* columns, int64_t count, const int* wrong, double* slopes) {
  for (int64_t b = first_item(); b <= count; b += item_step()) {
    double slope = 0.0;  // below and above all thresholds nothing changes
    if (b > 0 && b < count) slope = columns[b - 1].rate[0] - columns[b - 1].rate[1];
    slopes[b] = *wrong ? NAN : slope;
  }
}

__global__ void write_positive_gradients(Loss loss, const Row* row, const RunningSums* columns, const double* at,
                                         const int32_t* bin, const double* own, const double* quality, int64_t rows,
                                         const int* wrong, double* by_score, double* by_quality) {
  for (int64_t i = first_item(); i < rows; i += item_step()) {
    const int64_t threshold = bin[i] > 0 ? bin[i] - 1 : 0;
    const RunningSums& sums = columns[threshold];
    const Column column = {sums.rate[0], sums.rate[1], sums.sum[0]};
    const double u = quality[i], beyond = own[i] - at[threshold];
    by_score[i] = *wrong ? NAN : score_gradient(loss, row[i], column, u);
    by_quality[i] = *wrong ? NAN : quality_gradient(loss, row[i], column, u, beyond);
  }
}

// Adds the terms of all rows; launched as one block, which adds in the same order every time.
__global__ void write_loss(const Row* row, int64_t rows, const int* wrong, double* value) {
  __shared__ double part[kThreads];
  double sum = 0.0;
  for (int64_t i = threadIdx.x; i < rows; i += kThreads) sum += row[i].value;
  part[threadIdx.x] = sum;
  for (unsigned half = kThreads / 2; half > 0; half /= 2) {
    __syncthreads();  // before every round, which reads what other threads have written; the last is read by its writer
    if (threadIdx.x < half) part[threadIdx.x] += part[threadIdx.x + half];
  }
  if (threadIdx.x == 0) *value = *wrong ? NAN : part[0];
}

// Without *wrong: then the slopes are NaN themselves.
template <typename T, typename Index>
__global__ void look_up_gradients(const Index* bins, int64_t n, const T* slopes, T* out) {
  for (int64_t j = first_item(); j < n; j += item_step()) out[j] = slopes[bins[j]];
}

// begin: as in read_own.
template <typename T>
__global__ void overwrite_positives(const int64_t* place, const T* by_score, int64_t rows, int64_t begin, int64_t n,
                                    T* out) {
  for (int64_t i = first_item(); i < rows; i += item_step()) {
    const int64_t at = place[i] - begin;
    if (at >= 0 && at < n) out[at] = by_score[i];
  }
}

}  // namespace detsearch::ap
