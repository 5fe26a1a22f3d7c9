// Parameters of the kernels: pointers, sizes and strides, independent of torch. csrc/ops fills
// these structs; the kernels in csrc/cpu and csrc/cuda take the same ones. Strides are in elements;
// the last dimension is contiguous except in Planes.
#pragma once

#include <cstddef>
#include <cstdint>

namespace cekernels {

enum class DType : int32_t { f16, bf16, f32, f64, u8 };

// Precision of float32 products: full float32, three TF32 products, or one TF32 product. Kernels
// may be more accurate than requested.
enum class Products : int32_t { ieee, tf32x3, tf32 };

// out[b,c,o] = act(sum_i weight[c,o,i] input[b,c,i] + bias[c,o])
struct LinearForward {
  DType dtype;
  int64_t batch, channels, n_out, n_in;
  const void* input;  // (B, C, N_in)
  int64_t input_batch, input_channel;
  const void* weight;  // (C, N_out, N_in)
  int64_t weight_channel, weight_row;
  const void* bias;  // (C, N_out), or null
  int64_t bias_channel;
  bool relu;
  void* output;  // (B, C, N_out), contiguous
  Products products;
};

// Null gradient pointers are skipped. `output` is null unless a ReLU was applied.
struct LinearBackward {
  DType dtype;
  int64_t batch, channels, n_out, n_in;
  const void* grad_output;  // (B, C, N_out)
  int64_t grad_batch, grad_channel;
  const void* output;  // (B, C, N_out), or null
  int64_t output_batch, output_channel;
  const void* input;  // (B, C, N_in)
  int64_t input_batch, input_channel;
  const void* weight;  // (C, N_out, N_in)
  int64_t weight_channel, weight_row;
  void* grad_input;   // (B, C, N_in), contiguous
  void* grad_weight;  // (C, N_out, N_in), contiguous
  void* grad_bias;    // (C, N_out), contiguous
  Products products;
};

enum class Normalize : int32_t { mask, all, sum, none };

// Data and strides of an image or a mask (B, C, H, W); the stride of a broadcast dimension is 0. On
// the CPU the column stride is 1.
struct Planes {
  const void* data;
  int64_t batch, channel, row, column;
};

struct MaskedLoss {
  DType dtype;       // of prediction and target
  DType mask_dtype;  // u8 (also for bool), or the accumulation dtype: f32, or f64 for f64
  int64_t batch, channels, mask_channels, height, width;
  Planes prediction, target, mask;
  int32_t power;  // 1 or 2
  Normalize normalize;
  const void* area;  // (B,) int64, f32 or f64; null: computed from the mask
  DType area_dtype;  // u8 denotes int64
  int64_t area_stride;
  void* loss;   // (), or (B,) for Normalize::none; f32, or f64 for f64
  void* scale;  // ()
  // CUDA only. (B, C, H, W): the gradient for a grad_loss of 1, computed in the same pass; null:
  // skipped. Contiguous, or with channels_last in that format.
  void* grad;
  bool channels_last;
  uint32_t* counter;  // CUDA only. 0, and 0 again when the kernel has ended
};

struct MaskedLossBackward {
  DType dtype, mask_dtype;
  int64_t batch, channels, mask_channels, height, width;
  Planes prediction, target, mask;
  int32_t power;
  const void* grad_loss;  // () with stride 0, or (B,); f32, or f64 for f64
  int64_t grad_loss_stride;
  const void* scale;
  void* grad;  // (B, C, H, W), dtype of prediction; contiguous, or (CUDA only) channels_last
  bool channels_last;
};

// Scales in place the gradient for a grad_loss of 1 to that for grad_loss. Unmasked elements are 0
// and are left unchanged.
struct ScaleGradient {
  DType dtype, mask_dtype;
  int64_t batch, channels, mask_channels, height, width;
  Planes mask;
  const void* grad_loss;  // as in MaskedLossBackward
  int64_t grad_loss_stride;
  void* grad;
  bool channels_last;  // the layout of grad
};

// out = value[c] where the mask is not 0, the image elsewhere; bits are copied, not converted.
struct FillMasked {
  int32_t element_size, mask_element_size;  // 1, 2, 4 or 8 bytes
  bool mask_floating;                       // true: -0.0 counts as 0
  int64_t batch, channels, height, width;
  Planes image, mask;
  const void* value;  // (C,), elements of element_size
  void* output;       // (B, C, H, W), contiguous, or (CUDA only) channels_last
  bool channels_last;
};

// Masks and areas of polygons or boxes and, optionally, filled images.
struct Shapes {
  bool boxes;     // true: vertices holds boxes (K, 4) and contour_offsets is null
  bool even_odd;  // true: even-odd rule; false: non-zero winding
  int64_t batch, height, width;
  const int32_t* vertices;  // (V, 2)
  int64_t vertex_count;
  const int64_t* contour_offsets;  // (K + 1,)
  int64_t contour_count;
  const int64_t* sample_offsets;  // (B + 1,)
  uint8_t* mask;                  // (B, 1, H, W), contiguous
  int64_t* area;                  // (B,)
  // Images filled in the same pass; element_size 0: masks only.
  int32_t element_size;
  int64_t channels;
  Planes image;
  const void* value;
  void* output;
};

// A square patch of 2 radius + 1 pixels is named by its centre, a flat index y W + x. Colours are
// fixed-point integers from 0 to 1020: four to a level of 8 bits.
struct PatchMatch {
  int64_t height, width, channels, radius;
  const int16_t* image;   // (H, W, C): three colours, then texture
  const int16_t* guide;   // (H, W, 3)
  const uint8_t* source;  // (H, W): not 0 where a patch may be copied from
  int64_t guide_weight;   // in sixteenths
  int64_t max_offset;     // of a patch's colour
  int64_t sweeps, first_sweep;
  uint64_t seed;
  const int32_t* field;  // (H, W): the source of each target patch, -1 where there is none
  int32_t* matched;      // (H, W)
  int32_t* cost;         // (H, W)
};

struct PatchVote {
  int64_t height, width, channels, radius;
  const int16_t* image;  // (H, W, C)
  const int32_t* field;  // (H, W)
  const int32_t* cost;   // (H, W)
  const uint8_t* mask;   // (H, W)
  const int16_t* depth;  // (H, W): distance to known pixels in thirds of a pixel
  int64_t max_offset;
  bool best;        // one patch decides
  int16_t* output;  // (H, W, C)
};

// output = input / (k + alpha / size * sum of squares over `size` channels)^beta, or the gradient of
// that. All tensors have one layout: planes (B, C, positions), or channels_last.
struct LocalResponseNorm {
  DType dtype;
  int64_t batch, channels, positions;
  bool channels_last;
  int64_t size;  // the window of channel c begins at c - size / 2
  double alpha, beta, k;
  const void* input;
  const void* grad_output;  // null: forward
  void* output;
};

// Adds to the pixels of each hole the harmonic correction that makes them meet the known pixels.
struct RemoveSeam {
  int64_t batch, channels, height, width;
  const float* image;   // (B, C, H, W), contiguous
  const uint8_t* mask;  // (B, 1, H, W), contiguous; not 0 in the hole
  float* output;        // (B, C, H, W), contiguous
};

// Parameters of all kernels; cpu/kernels.h and cuda/kernels.h declare a run() for each.
#define CEK_FOR_EACH_KERNEL(declare) \
  declare(LinearForward)             \
  declare(LinearBackward)            \
  declare(MaskedLoss)                \
  declare(MaskedLossBackward)        \
  declare(ScaleGradient)             \
  declare(FillMasked)                \
  declare(Shapes)

// Of the CPU alone, per instruction set.
#define CEK_FOR_EACH_CPU_KERNEL(declare) \
  declare(LocalResponseNorm)             \
  declare(PatchMatch)                    \
  declare(PatchVote)

}  // namespace cekernels
