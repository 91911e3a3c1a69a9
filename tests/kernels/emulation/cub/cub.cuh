// What ap_loss.cu uses of cub, on a CPU: the same results, in an order of additions that cub might take, too.

#pragma once

#include <algorithm>
#include <numeric>
#include <vector>

namespace cub {

// Without memory a call only says how much it needs.
inline bool only_asks(void* work, size_t& bytes) {
  bytes = 1;
  return work == nullptr;
}

struct DeviceRadixSort {
  template <typename Key, typename Value>
  static int SortPairs(void* work, size_t& bytes, const Key* from, Key* to, const Value* value_from, Value* value_to,
                       int count, int, int, void*) {
    if (only_asks(work, bytes)) return 0;
    std::vector<int> order(count);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return from[a] < from[b]; });
    for (int i = 0; i < count; ++i) {
      to[i] = from[order[i]];
      value_to[i] = value_from[order[i]];
    }
    return 0;
  }
};

struct DeviceScan {
  template <typename Item, typename Join>
  static int InclusiveScan(void* work, size_t& bytes, const Item* from, Item* to, Join join, int count, void*) {
    if (only_asks(work, bytes)) return 0;
    // steps of 1, 2, 4, ...: joins neighbours that are themselves joined, which an operation that is not associative shows
    std::copy(from, from + count, to);
    for (int step = 1; step < count; step *= 2) {
      for (int i = count - 1; i >= step; --i) to[i] = join(to[i - step], to[i]);
    }
    return 0;
  }
};

}  // namespace cub
