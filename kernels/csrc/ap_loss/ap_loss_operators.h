// The parameterized AP loss as operators, the same for CPU and CUDA: how their tensors are read and which types a call
// runs with. What all processes of a training share is float64 and lies between the operators, so that the caller can
// gather the positives and add the totals. A Device gives, with T of the scores and Index of the bin kept of each:
//   own<T>(levels, positives, own, place)
//   bins<T, Index>(levels, own, ignored, loss, results)
//   answer(totals, at, owner, own, quality, loss, answer)
//   gradient<T, Index>(bins, slopes, place, by_score, results)

#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <tuple>
#include <vector>

#include "ap_loss/ap_loss.h"
#include "common/logits.h"

namespace detsearch::ap {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Tensors = std::vector<Tensor>;

// The levels of a head, and where each begins when all are laid one after the other.
struct Levels {
  explicit Levels(const Tensors& given) : scores(given), layouts(read_layouts(given)), priors(priors_of(layouts)) {
    for (const LogitLayout& layout : layouts) {
      begin.push_back(count);
      count += layout.count();
    }
  }

  Tensors scores;
  std::vector<LogitLayout> layouts;
  std::vector<int64_t> begin;
  int64_t priors, count = 0;
};

// bins: of every score of a level, in its own memory order. at, owner (B): the thresholds in ascending order, each
// positive x steps + step. totals (2, B + 1): how many scores are in a bin, and their sum.
struct Binned {
  Tensors bins;
  Tensor at, owner, totals;
};

// loss (), slopes (B + 1) by a score in each bin, by_score, by_quality (P): the positives' gradients. float64.
struct Answer {
  Tensor loss, slopes, by_score, by_quality;
};

template <typename Device>
std::tuple<Tensor, Tensor> own(Tensors levels, Tensor positives) {
  const Levels read(levels);
  Tensor own = torch::stable::new_empty(positives, {positives.numel()}, ScalarType::Double),
         place = torch::stable::new_empty(positives, {positives.numel()});
  if (levels[0].scalar_type() == ScalarType::Double) {
    Device::template own<double>(read, positives, own, place);
  } else {
    Device::template own<float>(read, positives, own, place);
  }
  return {own, place};
}

template <typename Device>
std::tuple<Tensors, Tensor, Tensor, Tensor> bins(Tensors levels, Tensor own, Tensor ignored, Tensor knots,
                                                 int64_t steps) {
  const Levels read_levels(levels);
  const int64_t positives = own.numel();
  const Loss loss = read(knots.const_data_ptr<double>(), knots.size(0), positives, false);
  const int64_t count = check(loss, steps, positives);
  const bool few = count < kShortBins;
  Binned results = {{},
                    torch::stable::new_empty(own, {count}),
                    torch::stable::new_empty(own, {count}, ScalarType::Int),
                    torch::stable::new_empty(own, {2, count + 1})};
  for (const LogitLayout& layout : read_levels.layouts) {
    const ScalarType kept = few ? ScalarType::Short : ScalarType::Int;
    results.bins.push_back(torch::stable::new_empty(own, {layout.count()}, kept));
  }
  if (levels[0].scalar_type() == ScalarType::Double) {
    few ? Device::template bins<double, uint16_t>(read_levels, own, ignored, loss, results)
        : Device::template bins<double, int32_t>(read_levels, own, ignored, loss, results);
  } else {
    few ? Device::template bins<float, uint16_t>(read_levels, own, ignored, loss, results)
        : Device::template bins<float, int32_t>(read_levels, own, ignored, loss, results);
  }
  return {results.bins, results.at, results.owner, results.totals};
}

template <typename Device>
std::tuple<Tensor, Tensor, Tensor, Tensor> answer(Tensor totals, Tensor at, Tensor owner, Tensor own, Tensor quality,
                                                  Tensor knots, int64_t steps, bool through_denominator) {
  const int64_t positives = own.numel();
  const Loss loss = read(knots.const_data_ptr<double>(), knots.size(0), positives, through_denominator);
  const int64_t count = check(loss, steps, positives);
  STD_TORCH_CHECK(at.numel() == count && owner.numel() == count && totals.numel() == 2 * (count + 1),
                  "thresholds and totals must be of ", count, " thresholds, got ", at.numel(), ", ", owner.numel(),
                  " and ", totals.numel());
  const Answer answer = {torch::stable::new_empty(own, {}), torch::stable::new_empty(own, {count + 1}),
                         torch::stable::new_empty(own, {positives}), torch::stable::new_empty(own, {positives})};
  Device::answer(totals, at, owner, own, quality, loss, answer);
  return {answer.loss, answer.slopes, answer.by_score, answer.by_quality};
}

// slopes (B + 1) and by_score (P) are in the type of the scores, and so are the results, one of each level's bins.
template <typename Device>
Tensors gradient(Tensors bins, Tensor slopes, Tensor place, Tensor by_score) {
  Tensors results;
  for (const Tensor& level : bins) results.push_back(torch::stable::new_empty(slopes, {level.numel()}));
  const bool few = slopes.numel() - 1 < kShortBins;
  if (slopes.scalar_type() == ScalarType::Double) {
    few ? Device::template gradient<double, uint16_t>(bins, slopes, place, by_score, results)
        : Device::template gradient<double, int32_t>(bins, slopes, place, by_score, results);
  } else {
    few ? Device::template gradient<float, uint16_t>(bins, slopes, place, by_score, results)
        : Device::template gradient<float, int32_t>(bins, slopes, place, by_score, results);
  }
  return results;
}

template <typename Device>
void implement(torch::stable::detail::StableLibrary& m) {
  m.impl("ap_loss_own", TORCH_BOX(&own<Device>));
  m.impl("ap_loss_bins", TORCH_BOX(&bins<Device>));
  m.impl("ap_loss_answer", TORCH_BOX(&answer<Device>));
  m.impl("ap_loss_gradient", TORCH_BOX(&gradient<Device>));
}

}  // namespace detsearch::ap
