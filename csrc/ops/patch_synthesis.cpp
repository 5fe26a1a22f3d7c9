// Patch matching and voting, on the CPU alone.
#include "common.h"

#ifndef CEK_CUDA

namespace cekernels {
namespace {

constexpr int64_t kMostPixels = int64_t(1) << 31;
constexpr int64_t kMostRadius = 7;
constexpr int64_t kMostSweeps = 1 << 20;

// Sizes of an image (H, W, C), int16, with whole patches in it.
template <class Params>
void expect_image(const char* op, const Tensor& image, int64_t radius, Params& p) {
  expect(op, "image", image, image, {-1, -1, -1});
  expect_type(op, "image", image, ScalarType::Short);
  p.height = image.size(0), p.width = image.size(1), p.channels = image.size(2), p.radius = radius;
  CEK_CHECK(op, p.channels >= 3 && p.channels <= 16, "image must have 3 to 16 channels");
  CEK_CHECK(op, radius >= 0 && radius <= kMostRadius, "radius must be in 0..7");
  CEK_CHECK(op, p.height < kMostPixels && p.width < kMostPixels && p.height * p.width < kMostPixels,
            "image must have fewer than 2^31 pixels");
}

// The patches of a field, and its sources, lie whole in the image.
void expect_field(const char* op, const Tensor& field, int64_t radius) {
  const int64_t height = field.size(0), width = field.size(1);
  const int32_t* value = static_cast<const int32_t*>(field.const_data_ptr());
  const auto whole = [&](int64_t position) {
    const int64_t y = position / width, x = position % width;
    return y >= radius && y < height - radius && x >= radius && x < width - radius;
  };
  for (int64_t i = 0; i < height * width; ++i) {
    if (value[i] < 0) continue;
    CEK_CHECK(op, value[i] < height * width && whole(i) && whole(value[i]),
              "field must name patches that lie whole in the image");
  }
}

std::tuple<Tensor, Tensor> patch_match(Tensor image, Tensor guide, Tensor source, Tensor field,
                                       int64_t radius, int64_t guide_weight, int64_t max_offset,
                                       int64_t sweeps, int64_t first_sweep, int64_t seed) {
  const char* op = "patch_match";
  PatchMatch p{};
  expect_image(op, image, radius, p);
  expect(op, "guide", guide, image, {p.height, p.width, 3});
  expect_type(op, "guide", guide, ScalarType::Short);
  expect(op, "source", source, image, {p.height, p.width});
  CEK_CHECK(op, is_bytes(source), "source must be bool or uint8");
  expect(op, "field", field, image, {p.height, p.width});
  expect_type(op, "field", field, ScalarType::Int);
  image = contiguous(op, "image", image), guide = contiguous(op, "guide", guide);
  source = contiguous(op, "source", source), field = contiguous(op, "field", field);
  expect_field(op, field, radius);
  CEK_CHECK(op, guide_weight >= 0 && guide_weight <= 1 << 16, "guide_weight must be in 0..65536");
  CEK_CHECK(op, max_offset >= 0 && max_offset <= 1020, "max_offset must be in 0..1020");
  CEK_CHECK(op, sweeps >= 0 && sweeps <= kMostSweeps, "sweeps must be in 0..2^20");
  p.image = static_cast<const int16_t*>(image.const_data_ptr());
  p.guide = static_cast<const int16_t*>(guide.const_data_ptr());
  p.source = static_cast<const uint8_t*>(source.const_data_ptr());
  p.field = static_cast<const int32_t*>(field.const_data_ptr());
  p.guide_weight = guide_weight, p.max_offset = max_offset;
  p.sweeps = sweeps, p.first_sweep = first_sweep, p.seed = uint64_t(seed);
  Tensor matched = empty(op, "field", image, ScalarType::Int, {p.height, p.width});
  Tensor cost = empty(op, "cost", image, ScalarType::Int, {p.height, p.width});
  p.matched = static_cast<int32_t*>(matched.mutable_data_ptr());
  p.cost = static_cast<int32_t*>(cost.mutable_data_ptr());
  execute(image, p);
  return {matched, cost};
}

Tensor patch_vote(Tensor image, Tensor field, Tensor cost, Tensor mask, Tensor depth,
                  int64_t radius, int64_t max_offset, bool best) {
  const char* op = "patch_vote";
  PatchVote p{};
  expect_image(op, image, radius, p);
  expect(op, "field", field, image, {p.height, p.width});
  expect_type(op, "field", field, ScalarType::Int);
  expect(op, "cost", cost, image, {p.height, p.width});
  expect_type(op, "cost", cost, ScalarType::Int);
  expect(op, "mask", mask, image, {p.height, p.width});
  CEK_CHECK(op, is_bytes(mask), "mask must be bool or uint8");
  expect(op, "depth", depth, image, {p.height, p.width});
  expect_type(op, "depth", depth, ScalarType::Short);
  CEK_CHECK(op, max_offset >= 0 && max_offset <= 1020, "max_offset must be in 0..1020");
  image = contiguous(op, "image", image), field = contiguous(op, "field", field),
  cost = contiguous(op, "cost", cost);
  mask = contiguous(op, "mask", mask), depth = contiguous(op, "depth", depth);
  expect_field(op, field, radius);
  p.image = static_cast<const int16_t*>(image.const_data_ptr());
  p.field = static_cast<const int32_t*>(field.const_data_ptr());
  p.cost = static_cast<const int32_t*>(cost.const_data_ptr());
  p.mask = static_cast<const uint8_t*>(mask.const_data_ptr());
  p.depth = static_cast<const int16_t*>(depth.const_data_ptr());
  p.max_offset = max_offset, p.best = best;
  Tensor output = empty(op, "output", image, ScalarType::Short, {p.height, p.width, p.channels});
  p.output = static_cast<int16_t*>(output.mutable_data_ptr());
  execute(image, p);
  return output;
}

}  // namespace
}  // namespace cekernels

CEK_LIBRARY(m) {
  using namespace cekernels;
  CEK_IMPLEMENT(m, "patch_match", &patch_match);
  CEK_IMPLEMENT(m, "patch_vote", &patch_vote);
}

#endif
