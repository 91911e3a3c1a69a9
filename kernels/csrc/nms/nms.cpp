// Non-maximum suppression that ends with the last box that is wanted. Boxes are taken best first from a heap, so what
// lies behind that one is neither sorted nor compared.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <unordered_map>
#include <vector>

namespace detsearch {
namespace {

using torch::stable::Tensor;

struct Corners {
  float x1, y1, x2, y2;

  float area() const { return (x2 - x1) * (y2 - y1); }
};

// Rounds as torchvision's nms does, so that both keep the same boxes: a negative side is not 0 here, as it is in
// common/box.h.
bool overlaps(const Corners& a, const Corners& b, double most) {
  const float width = std::max(0.0f, std::min(a.x2, b.x2) - std::max(a.x1, b.x1));
  const float height = std::max(0.0f, std::min(a.y2, b.y2) - std::max(a.y1, b.y1));
  const float shared = width * height;
  return shared / (a.area() + b.area() - shared) > most;
}

struct Kept {
  Corners box;
  int64_t index, before;  // before: number of the box of this class that was kept last, -1 for none
};

Tensor nms(Tensor boxes, Tensor scores, Tensor labels, double most_iou, int64_t limit) {
  const int64_t count = scores.numel();
  const Corners* box = reinterpret_cast<const Corners*>(boxes.const_data_ptr<float>());
  const float* score = scores.const_data_ptr<float>();
  const int64_t* label = labels.const_data_ptr<int64_t>();
  const auto worse = [=](int64_t a, int64_t b) { return score[a] != score[b] ? score[a] < score[b] : a > b; };
  std::vector<int64_t> heap(count);
  for (int64_t i = 0; i < count; ++i) {
    // a NaN has no place in an order, and the heap would fall apart
    STD_TORCH_CHECK(score[i] == score[i], "no score may be NaN, got one at ", i);
    heap[i] = i;
  }
  // a heap, not a sort: only the boxes up to the last one wanted are put in order
  std::make_heap(heap.begin(), heap.end(), worse);
  std::vector<Kept> kept;
  std::unordered_map<int64_t, int64_t> last;  // of each class, the number of the box kept last
  while (!heap.empty() && static_cast<int64_t>(kept.size()) < limit) {
    std::pop_heap(heap.begin(), heap.end(), worse);
    const int64_t index = heap.back();
    heap.pop_back();
    int64_t& newest = last.try_emplace(label[index], -1).first->second;
    int64_t other = newest;
    while (other >= 0 && !overlaps(kept[other].box, box[index], most_iou)) other = kept[other].before;
    if (other >= 0) continue;
    // the boxes of a class are a list through `before`: no memory of their own for each of many classes
    kept.push_back({box[index], index, newest});
    newest = static_cast<int64_t>(kept.size()) - 1;
  }
  Tensor result = torch::stable::new_empty(labels, {static_cast<int64_t>(kept.size())});
  int64_t* to = result.mutable_data_ptr<int64_t>();
  for (const Kept& one : kept) *to++ = one.index;
  return result;
}

}  // namespace
}  // namespace detsearch

STABLE_TORCH_LIBRARY_FRAGMENT(detsearch, m) {
  m.def("nms(Tensor boxes, Tensor scores, Tensor labels, float most_iou, int limit) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(detsearch, CPU, m) { m.impl("nms", TORCH_BOX(&detsearch::nms)); }
