// Focal loss of all logits and its gradient on a GPU: one launch a level, and one that adds up the blocks' sums.

#include "focal_gpu.h"
#include "focal_operators.h"
#include "gpu.h"

#include <algorithm>

namespace detsearch::focal {
namespace {

constexpr int64_t kMostBlocks = 2048;  // of a level: threads then take several logits each

struct Cuda {
  // Ranges are not looked at: that would stall the host.
  static void check(const Tensor&, const Tensor&, int64_t) {}

  template <typename T>
  static Level<T> level_of(const Call& call, size_t i) {
    const Map& map = call.maps[i];
    STD_TORCH_CHECK(map.per_image() < int64_t(1) << 32, "at most 2^32 logits an image and level, got ",
                    map.per_image());
    const int64_t most = std::max<int64_t>(1, kMostBlocks / std::max<int64_t>(1, map.images));
    const int64_t blocks = std::clamp<int64_t>((map.per_image() + kThreads - 1) / kThreads, 1, most);
    return {map,
            call.logits[i].const_data_ptr<T>(),
            call.matched.const_data_ptr<int64_t>(),
            call.labels.const_data_ptr<int64_t>(),
            call.priors,
            call.labels.numel(),
            blocks,
            static_cast<T>(call.alpha),
            static_cast<T>(call.gamma)};
  }

  template <typename T, bool squares>
  static void sum(const Call& call, Tensor& result) {
    const gpu::Stream stream(call.matched);
    std::vector<Level<T>> levels;
    int64_t count = 0;
    for (size_t i = 0; i < call.maps.size(); ++i) {
      levels.push_back(level_of<T>(call, i));
      count += levels[i].map.images * levels[i].blocks;
    }
    const gpu::Buffer<double> parts(call.matched, count);
    double* next = parts.get();
    for (const Level<T>& level : levels) {
      const int64_t blocks = level.map.images * level.blocks;
      if (blocks > 0) stream.launch(sum_level<T, squares>, blocks, kThreads, 0, level, next);
      next += blocks;
    }
    stream.launch(sum_parts<T>, 1, kThreads, 0, parts.get(), count, result.mutable_data_ptr<T>());
  }

  template <typename T, bool squares>
  static void gradient(const Call& call, const Tensor& factor, Tensors& results) {
    const gpu::Stream stream(call.matched);
    for (size_t i = 0; i < call.maps.size(); ++i) {
      const Level<T> level = level_of<T>(call, i);
      const int64_t blocks = level.map.images * level.blocks;
      if (blocks > 0)
        stream.launch(fill_gradient<T, squares>, blocks, kThreads, 0, level, factor.const_data_ptr<T>(),
                      results[i].mutable_data_ptr<T>());
    }
  }
};

}  // namespace
}  // namespace detsearch::focal

STABLE_TORCH_LIBRARY_IMPL(detsearch, CUDA, m) { detsearch::focal::implement<detsearch::focal::Cuda>(m); }
