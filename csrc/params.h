// What each op computes on: pointers, sizes and strides, free of torch. cpu/ and cuda/ take the same
// structs; bindings.cpp fills them. Strides count elements; the last dimension is always dense.
#pragma once

#include <cstddef>
#include <cstdint>

namespace cekernels {

enum class DType : int32_t { f16, bf16, f32, f64, u8 };

// How float32 is multiplied: as it is, as three products of TF32 numbers, or as one. Kernels may be
// more exact.
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

// Each gradient that is null is not asked for. `output`, where not null, is that of a ReLU.
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

// Where an image or a mask (B, C, H, W) lies; a stride is 0 where the dimension is broadcast.
struct Planes {
  const void* data;
  int64_t batch, channel, row;
};

struct MaskedLoss {
  DType dtype;       // of prediction and target
  DType mask_dtype;  // u8 (bool too), or that of the sums: f32, or f64 for f64
  int64_t batch, channels, mask_channels, height, width;
  Planes prediction, target, mask;
  int32_t power;  // 1 or 2
  Normalize normalize;
  const void* area;  // (B,) int64, f32 or f64; null: counted
  DType area_dtype;  // u8 stands for int64
  int64_t area_stride;
  void* loss;   // () or, for none, (B,), f32, or f64 for f64
  void* scale;  // ()
  // CUDA alone. (B, C, H, W), contiguous: the gradient for a grad_loss of 1, made in the same pass;
  // null: not asked for. The area must be given, or not be needed for the scale.
  void* grad;
};

struct MaskedLossBackward {
  DType dtype, mask_dtype;
  int64_t batch, channels, mask_channels, height, width;
  Planes prediction, target, mask;
  int32_t power;
  const void* grad_loss;  // one, or with stride 1 one a sample; f32, or f64 for f64
  int64_t grad_loss_stride;
  const void* scale;
  void* grad;  // (B, C, H, W), contiguous, as prediction
};

// In place: the gradient for a grad_loss of 1 becomes that for grad_loss. Elements that are not masked
// are 0 and stay it.
struct ScaleGradient {
  DType dtype, mask_dtype;
  int64_t batch, channels, mask_channels, height, width;
  Planes mask;
  const void* grad_loss;  // as in MaskedLossBackward
  int64_t grad_loss_stride;
  void* grad;
};

// out = value[c] where the mask is not 0, the image elsewhere: bits are copied, never converted.
struct FillMasked {
  int32_t element_size, mask_element_size;  // 1, 2, 4 or 8 bytes
  bool mask_floating;                       // then -0.0 counts as 0
  int64_t batch, channels, height, width;
  Planes image, mask;
  const void* value;  // (C,), of element_size
  void* output;       // (B, C, H, W), contiguous
};

struct Shapes {
  bool boxes;     // vertices are boxes (K, 4) and contour_offsets is null
  bool even_odd;  // else non-zero winding
  int64_t batch, height, width;
  const int32_t* vertices;  // (V, 2)
  int64_t vertex_count;
  const int64_t* contour_offsets;  // (K + 1,)
  int64_t contour_count;
  const int64_t* sample_offsets;  // (B + 1,)
  uint8_t* mask;                  // (B, 1, H, W), contiguous
  int64_t* area;                  // (B,)
  // Filling in the same pass; element_size 0: masks only.
  int32_t element_size;
  int64_t channels;
  Planes image;
  const void* value;
  void* output;
};

// Every kernel's parameters: what cpu/kernels.h and cuda/kernels.h declare a run() for.
#define CEK_FOR_EACH_KERNEL(declare) \
  declare(LinearForward)             \
  declare(LinearBackward)            \
  declare(MaskedLoss)                \
  declare(MaskedLossBackward)        \
  declare(ScaleGradient)             \
  declare(FillMasked)                \
  declare(Shapes)

}  // namespace cekernels
