// The k candidates of lowest loss. Few candidates are looked at closely: a loss is never below what the overlap alone
// costs, and never below the bound that needs one class; only where both are still low are all classes summed.

#pragma once

#include <algorithm>
#include <array>
#include <vector>

#include "losses.h"
#include "orphans.h"

namespace detsearch {

constexpr float kUnknown = -1.0f;  // a loss not computed yet
constexpr size_t kFirst = 6;       // times k candidates are looked at first, to find a limit for the others
constexpr size_t kMany = 8;        // times k; fewer are all looked at

// An overlap that at least `count` of all reach, and not many more where there are many, from a histogram of the
// leading bits; 0 where all are needed.
inline float usual_overlap(const std::vector<float>& overlap, size_t count) {
  constexpr uint32_t kBits = 19, kBins = 128;  // four bits of the mantissa, overlaps from 2^-8 up
  constexpr uint32_t kLowest = (0x3f800000u >> kBits) - kBins + 1;
  // neighbours overlap alike: counters of their own, or each would wait for the one before
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
  // 16: kMinIou costs 16.1 alpha; the margin covers what rounding can do to a logarithm
  return exponent < 16.0f ? exponential(-exponent) * (1.0f - 1e-4f) : 0.0f;
}

// The `count`-th lowest of more than `count` bounds.
inline float usual_bound(const std::vector<float>& bound, size_t count, std::vector<uint32_t>& scratch) {
  scratch.clear();
  // as integers, which order as floats >= 0 do: what is no number must not confuse the algorithm
  for (const float value : bound) scratch.push_back(float_to_bits(positive(value)));
  std::nth_element(scratch.begin(), scratch.begin() + (count - 1), scratch.end());
  return bits_to_float(scratch[count - 1]);
}

class Lowest {
 public:
  explicit Lowest(const Problem& problem) : problem_(problem) {}

  // As many candidates as a ground truth asks for, of lowest loss, then lowest prior, unordered; valid until the next
  // call. Losses are unknown where all candidates are chosen: they matter only where two want the same prior.
  const std::vector<Choice>& of(const Place& place) {
    const size_t count = static_cast<size_t>(count_of(problem_, place.box, found_));
    find(problem_, place, found_);
    best_.clear();
    const size_t all = found_.prior.size();
    if (all <= count) {
      for (const int32_t prior : found_.prior) best_.push_back({kUnknown, prior});
      return best_;
    }
    overlap_all(problem_, place, found_);
    const float usual = all > kMany * count ? usual_overlap(found_.overlap, kFirst * count) : 0.0f;
    look([&](float overlap) { return !(overlap < usual); });
    consider(place, count);
    if (usual > 0.0f) {
      const float least = least_overlap(best_.front().loss, problem_.alpha);
      look([&](float overlap) { return overlap < usual && overlap >= least; });
      bound_looked(problem_, place, found_);
      offer_all(place, count, best_.front().loss);
    }
    return best_;
  }

  // All candidates by loss, then prior.
  std::vector<Choice> all(const Place& place) {
    find(problem_, place, found_);
    overlap_all(problem_, place, found_);
    look([](float) { return true; });
    bound_looked(problem_, place, found_);
    std::vector<Choice> choices;
    for (size_t i = 0; i < found_.looked.size(); ++i) {
      choices.push_back({full_loss(problem_, place, found_, i), found_.prior[i]});
    }
    std::sort(choices.begin(), choices.end());
    return choices;
  }

 private:
  template <typename Wanted>
  void look(const Wanted& wanted) {
    const size_t count = found_.overlap.size();
    found_.looked.resize(count);
    int32_t* out = found_.looked.data();
    size_t end = 0;
    for (size_t i = 0; i < count; ++i) {  // without a branch, which could not be foreseen
      out[end] = static_cast<int32_t>(i);
      end += wanted(found_.overlap[i]);
    }
    found_.looked.resize(end);
  }

  // The first candidates, more than `count`: those of lowest bound come first, so that a limit is found soon.
  void consider(const Place& place, size_t count) {
    bound_looked(problem_, place, found_);
    const float usual = usual_bound(found_.bound, count, scratch_);
    offer_all(place, count, usual);
    for (size_t i = 0; i < found_.looked.size(); ++i) {
      if (!(found_.bound[i] <= usual)) offer(place, count, i);
    }
  }

  // Those whose bound is at most `limit`.
  void offer_all(const Place& place, size_t count, float limit) {
    for (size_t i = 0; i < found_.looked.size(); ++i) {
      if (found_.bound[i] <= limit) prefetch_classes(place, i);
    }
    for (size_t i = 0; i < found_.looked.size(); ++i) {
      if (found_.bound[i] <= limit) offer(place, count, i);
    }
  }

  void prefetch_classes(const Place& place, size_t i) const {
    const Classes classes = classes_of(problem_, place.image, found_.prior[found_.looked[i]]);
    if (classes.step != 1) return;  // each has a line of its own
    constexpr int64_t kLine = 16;
    for (int64_t c = 0; c < problem_.classes; c += kLine) __builtin_prefetch(classes.first + c);
  }

  void offer(const Place& place, size_t count, size_t i) {
    const bool full = best_.size() == count;
    if (full && found_.bound[i] > best_.front().loss) return;
    const Choice choice{full_loss(problem_, place, found_, i), found_.prior[found_.looked[i]]};
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
  Found found_;
  std::vector<Choice> best_;
  std::vector<uint32_t> scratch_;
};

}  // namespace detsearch
