// The k candidates of lowest loss. A loss is never below what the overlap alone costs, and never below the bound that
// needs one class. Only where both are low enough are all classes summed, which few candidates need.

#pragma once

#include <algorithm>
#include <array>
#include <vector>

#include "assign/candidates.h"
#include "assign/orphans.h"

namespace detsearch {

constexpr float kUnknown = -1.0f;   // a loss not computed yet
constexpr size_t kFirstFactor = 6;  // times k candidates come first, and give a limit for the others
constexpr size_t kManyFactor = 8;   // times k: fewer candidates are not worth two passes

// An overlap that at least `count` of all reach, and hardly more do; 0 where all are needed. From a histogram of the
// leading bits, which costs less than nth_element on all.
inline float overlap_reached_by(const std::vector<float>& overlap, size_t count) {
  constexpr uint32_t kBits = 19, kBins = 128;  // four bits of the mantissa, overlaps from 2^-8 up
  constexpr uint32_t kLowest = (0x3f800000u >> kBits) - kBins + 1;
  // neighbours overlap alike and would count in the same bin, each waiting for the one before: so four histograms
  constexpr size_t kSets = 4;
  std::array<uint32_t, kSets * kBins> histogram{};
  for (size_t i = 0; i < overlap.size(); ++i) {
    const uint32_t bin = float_to_bits(overlap[i]) >> kBits;
    ++histogram[std::min(std::max(bin, kLowest) - kLowest, kBins - 1) * kSets + i % kSets];
  }
  size_t seen = 0;
  for (uint32_t bin = kBins - 1; bin > 0; --bin) {
    for (size_t i = 0; i < kSets; ++i) seen += histogram[bin * kSets + i];
    if (seen >= count) return bits_to_float((bin + kLowest) << kBits);
  }
  return 0.0f;
}

// The overlap below which the loss exceeds `loss`, whatever the classes say; 0 where no overlap is so low.
inline float least_overlap(float loss, float alpha) {
  const float exponent = loss / alpha;
  // 16: kMinIou costs 16.1 alpha, and no overlap costs more. 1e-4 covers the rounding of the logarithm
  return exponent < 16.0f ? exponential(-exponent) * (1.0f - 1e-4f) : 0.0f;
}

// The `count`-th lowest of more than `count` bounds.
inline float kth_lowest_bound(const std::vector<float>& bound, size_t count, std::vector<uint32_t>& scratch) {
  scratch.clear();
  // positive() makes 0 of a NaN, for which nth_element is undefined; floats from 0 on order as their bits do
  for (const float value : bound) scratch.push_back(float_to_bits(positive(value)));
  std::nth_element(scratch.begin(), scratch.begin() + (count - 1), scratch.end());
  return bits_to_float(scratch[count - 1]);
}

class TopK {
 public:
  explicit TopK(const Problem& problem) : problem_(problem) {}

  // As many candidates as the ground truth asks for, those of lowest loss, then lowest prior, unordered. The result is
  // valid until the next call. Where all candidates are chosen their losses are kUnknown, because few are ever needed:
  // settle() computes them for priors that two ground truths chose.
  const std::vector<PriorLoss>& choose(const GroundTruth& gt) {
    const size_t count = static_cast<size_t>(count_of(problem_, gt.box, candidates_));
    find_candidates(problem_, gt, candidates_);
    best_.clear();
    const size_t num_candidates = candidates_.prior.size();
    if (num_candidates <= count) {
      for (const int32_t prior : candidates_.prior) best_.push_back({kUnknown, prior});
      return best_;
    }
    measure_overlaps(problem_, gt, candidates_);
    const float first_overlap =
        num_candidates > kManyFactor * count ? overlap_reached_by(candidates_.overlap, kFirstFactor * count) : 0.0f;
    make_shortlist([&](float overlap) { return !(overlap < first_overlap); });
    offer_first(gt, count);
    if (first_overlap > 0.0f) {
      // what overlaps less than `least` costs more than the worst choice so far by its overlap alone
      const float least = least_overlap(best_.front().loss, problem_.alpha);
      make_shortlist([&](float overlap) { return overlap < first_overlap && overlap >= least; });
      bound_shortlist(problem_, gt, candidates_);
      offer_all(gt, count, best_.front().loss);
    }
    return best_;
  }

  // All candidates by loss, then prior.
  std::vector<PriorLoss> sorted_by_loss(const GroundTruth& gt) {
    find_candidates(problem_, gt, candidates_);
    measure_overlaps(problem_, gt, candidates_);
    make_shortlist([](float) { return true; });
    bound_shortlist(problem_, gt, candidates_);
    std::vector<PriorLoss> choices;
    for (size_t i = 0; i < candidates_.shortlist.size(); ++i) {
      choices.push_back({full_loss(problem_, gt, candidates_, i), candidates_.prior[i]});
    }
    std::sort(choices.begin(), choices.end());
    return choices;
  }

 private:
  template <typename Accept>
  void make_shortlist(const Accept& accept) {
    const size_t count = candidates_.overlap.size();
    candidates_.shortlist.resize(count);
    int32_t* out = candidates_.shortlist.data();
    size_t end = 0;
    for (size_t i = 0; i < count; ++i) {  // always written, not always kept: a branch would often be mispredicted
      out[end] = static_cast<int32_t>(i);
      end += accept(candidates_.overlap[i]);
    }
    candidates_.shortlist.resize(end);
  }

  // Offers the first candidates, more than `count`. Those of lowest bound come first, so that the worst loss kept falls
  // early and rules out the others.
  void offer_first(const GroundTruth& gt, size_t count) {
    bound_shortlist(problem_, gt, candidates_);
    const float limit = kth_lowest_bound(candidates_.bound, count, scratch_);
    offer_all(gt, count, limit);
    for (size_t i = 0; i < candidates_.shortlist.size(); ++i) {
      // not `>`: a NaN would be offered neither above nor here
      if (!(candidates_.bound[i] <= limit)) offer(gt, count, i);
    }
  }

  // Offers those whose bound is at most `limit`. All class scores are asked for first, so that the memory answers while
  // losses are computed.
  void offer_all(const GroundTruth& gt, size_t count, float limit) {
    for (size_t i = 0; i < candidates_.shortlist.size(); ++i) {
      if (candidates_.bound[i] <= limit) prefetch_classes(gt, i);
    }
    for (size_t i = 0; i < candidates_.shortlist.size(); ++i) {
      if (candidates_.bound[i] <= limit) offer(gt, count, i);
    }
  }

  void prefetch_classes(const GroundTruth& gt, size_t i) const {
    const ClassScores classes = class_scores(problem_, gt.image, candidates_.prior[candidates_.shortlist[i]]);
    if (classes.step != 1) return;  // every class lies in another cache line: too many to ask for
    constexpr int64_t kLine = 16;   // floats
    for (int64_t c = 0; c < problem_.classes; c += kLine) __builtin_prefetch(classes.first + c);
  }

  void offer(const GroundTruth& gt, size_t count, size_t i) {
    const bool full = best_.size() == count;
    // `>`: at an equal loss the lower prior wins, so the candidate must be compared
    if (full && candidates_.bound[i] > best_.front().loss) return;
    const PriorLoss choice{full_loss(problem_, gt, candidates_, i), candidates_.prior[candidates_.shortlist[i]]};
    if (full) {
      if (!(choice < best_.front())) return;
      std::pop_heap(best_.begin(), best_.end());
      best_.back() = choice;
    } else {
      best_.push_back(choice);
    }
    std::push_heap(best_.begin(), best_.end());
  }

  const Problem& problem_;
  Candidates candidates_;
  std::vector<PriorLoss> best_;
  std::vector<uint32_t> scratch_;
};

}  // namespace detsearch
