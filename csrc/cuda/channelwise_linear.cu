// Channel-wise linear map: a small matrix product per channel.
//
// Square maps of 6x6 locations, as in the paper, and of 4x4 and 8x8 have kernels of their exact
// size. A block processes a few neighbouring channels, whose rows are whole sectors of memory, tile
// by tile of the batch: asynchronous copies bring the next tiles to shared memory while registers
// hold the weights. The products use tensor cores (16-bit types; float32 if the precision allows
// TF32) or exact arithmetic. The backward pass reads each operand once for all three gradients.
// Where there are fewer channels than a GPU needs blocks, blocks process slices of the batch; the
// sums of the slices go to a workspace and are added in a fixed order by a second launch. Other
// sizes are covered by tiles of 64 in exact arithmetic. Slices and summation orders depend on the
// shape alone.
#include <cmath>

#include "instructions.h"
#include "mma.h"

namespace cekernels {
namespace cuda {
namespace {

template <class T>
__device__ __forceinline__ bool is_positive(T x) {
  if constexpr (sizeof(T) == 2) {  // up to infinity; NaNs follow
    const uint32_t infinity = bit_cast<uint16_t>(narrow<T>(bit_cast<float>(0x7f800000u)));
    return x.bits - 1u < infinity;
  } else {
    return x > 0;
  }
}

// Rows of a group of channels in place: (row, c) starts at data + row * batch + c * channel.
template <class T>
struct Region {
  T* data;
  int64_t batch, channel;
  __device__ __forceinline__ T* at(int row, int c) const {
    return data + row * batch + c * channel;
  }
};

template <class T>
__device__ __forceinline__ Region<T> region(T* data, int64_t batch, int64_t channel, int64_t row0,
                                            int64_t c0) {
  return {data == nullptr ? data : data + row0 * batch + c0 * channel, batch, channel};
}

// Division of the work into blocks: `groups` of neighbouring channels times `slices` of `rows`
// samples.
struct Slices {
  int64_t groups, slices, rows;
};

// As many slices, of at least one tile, as give `blocks` blocks.
inline Slices slices_of(int64_t batch, int64_t channels, int group, int tile, int64_t blocks) {
  Slices s{divide_up(channels, group), 1, 0};
  const int64_t tiles = batch > tile ? divide_up(batch, tile) : 1;
  const int64_t wanted = divide_up(blocks, s.groups);
  s.rows = batch > 0 ? divide_up(batch, wanted < tiles ? wanted : tiles) : 1;
  s.slices = batch > s.rows ? divide_up(batch, s.rows) : 1;
  return s;
}

// The work of a block: a group of channels and a slice of the batch.
struct Work {
  int64_t c0, first;
  int channels, rows;

  __device__ __forceinline__ Work(int64_t block, const Slices& s, int64_t batch, int64_t all,
                                  int group) {
    c0 = block % s.groups * group;
    channels = all - c0 < group ? int(all - c0) : group;
    first = block / s.groups * s.rows;
    rows = int(batch - first < s.rows ? batch - first : s.rows);
  }
};

// --- tiles in shared memory ----------------------------------------------------------------------

// The elements of one sample that a block processes at a time: the rows of kChannels neighbouring
// channels. In a contiguous tensor they are 128, 256 or 288 bytes without a gap, which are whole
// sectors of memory.
template <class T, int N>
struct Slab {
  static constexpr int kChannels = (N == 64 ? 4 : 8) / sizeof(T);
  static constexpr int kSize = kChannels * N;
  static constexpr int kVector = 16 / sizeof(T);
  static constexpr int kVectors = kSize / kVector;
  // Elements from one sample to the next in shared memory: an odd number of units of 16 bytes for
  // 16-bit types, 8 banks more than whole rows of banks for others. The fragments of tensor cores
  // are then loaded without bank conflicts.
  static constexpr int kUnit = sizeof(T) / 4;  // banks per element
  static constexpr int kStride = sizeof(T) == 2
                                     ? kSize + kVector
                                     : kSize + (40 - kSize * kUnit % 32) % 32 / (kUnit + !kUnit);
  static constexpr int kWeights = kChannels * N * N;
};

// Samples in shared memory, tile[row][channel][location], moved by all threads of a block.
template <class T, int N, int kRows, int kThreads>
struct Tile {
  using S = Slab<T, N>;
  using Vector = Pack<T, S::kVector>;
  // Vectors are moved in passes of kAtOnce rows; a few threads may be left over.
  static constexpr int kAtOnce = kThreads / S::kVectors;
  static constexpr int kPasses = (kRows + kAtOnce - 1) / kAtOnce;

  static __device__ __forceinline__ int my_row() { return int(threadIdx.x) / S::kVectors; }
  static __device__ __forceinline__ int my_element() {
    return int(threadIdx.x) % S::kVectors * S::kVector;
  }

  // The rows of a tensor of which a block moves one tile after the other.
  template <class E>
  struct Rows : Region<E> {
    int channels;
    bool vectors;  // data is then the place of this thread's first vector
    __device__ __forceinline__ Rows(const Region<E>& all, int channels, bool vectors)
        : Region<E>(all), channels(channels), vectors(vectors && channels == S::kChannels) {
      if (this->vectors) this->data += my_row() * this->batch + my_element();
    }
    __device__ __forceinline__ void next() { this->data += kRows * this->batch; }
  };

  // Calls f(pass, place in a tile) for the vectors of this thread in the first `rows` rows.
  template <class F>
  static __device__ __forceinline__ void for_my_vectors(int rows, F f) {
    if (kThreads % S::kVectors != 0 && my_row() >= kAtOnce) return;
    const int place = my_row() * S::kStride + my_element(), left = rows - my_row();
#pragma unroll
    for (int i = 0; i < kPasses; ++i) {
      const bool in_all = rows == kRows && (i + 1) * kAtOnce <= kRows;
      if (in_all || i * kAtOnce < left) f(i, place + i * kAtOnce * S::kStride);
    }
  }

  // Bytes of this thread's vectors that exist, per pass.
  struct Sizes {
    int bytes[kPasses];
    __device__ __forceinline__ explicit Sizes(int rows) {
#pragma unroll
      for (int i = 0; i < kPasses; ++i) bytes[i] = my_row() + i * kAtOnce < rows ? 16 : 0;
    }
  };

  // Calls f(row, channel, location, place in a tile) for the elements of these vectors in all rows.
  template <class F>
  static __device__ __forceinline__ void for_my_elements(F f) {
    if (my_row() >= kAtOnce) return;
#pragma unroll 1
    for (int row = my_row(); row < kRows; row += kAtOnce) {
#pragma unroll 1
      for (int i = my_element(); i < my_element() + S::kVector; ++i) {
        f(row, i / N, i % N, row * S::kStride + i);
      }
    }
  }

  // Starts to load at most `rows` rows; zeros beyond them. They arrive when this thread has waited
  // for its copies.
  static __device__ __forceinline__ void load(T* tile, const Rows<const T>& from, int rows,
                                              const Sizes& sizes) {
    if (from.vectors) {
      const T* source = from.data;
      const Step<T> step(kAtOnce * from.batch);
      for_my_vectors(kRows, [&](int i, int place) {
        copy_async(tile + place, source, sizes.bytes[i]);
        source = step.from(source);
      });
    } else {
      for_my_elements([&](int row, int c, int k, int place) {
        tile[place] = row < rows && c < from.channels ? from.at(row, c)[k] : T{};
      });
    }
  }

  // Stores at most `rows` rows.
  static __device__ __forceinline__ void store(const T* tile, const Rows<T>& to, int rows) {
    if (to.vectors) {
      T* target = to.data;
      const Step<T> step(kAtOnce * to.batch);
      for_my_vectors(rows < kRows ? rows : kRows, [&](int, int place) {
        store_vector(target, *reinterpret_cast<const Vector*>(tile + place));
        target = step.from(target);
      });
    } else {
      for_my_elements([&](int row, int c, int k, int place) {
        if (row < rows && c < to.channels) to.at(row, c)[k] = tile[place];
      });
    }
  }

  // Sets gradients to 0 where `outputs`, if given, is not positive, and adds them to `sums`: per
  // element of this thread's vectors, over its rows.
  static __device__ __forceinline__ void gate(T* grads, const T* outputs,
                                              acc_t<T> (&sums)[S::kVector]) {
    for_my_vectors(kRows, [&](int, int place) {
      Vector g = *reinterpret_cast<const Vector*>(grads + place);
      if (outputs != nullptr) {
        const Vector y = *reinterpret_cast<const Vector*>(outputs + place);
#pragma unroll
        for (int v = 0; v < S::kVector; ++v) {
          if (!is_positive(y.v[v])) g.v[v] = T{};
        }
        *reinterpret_cast<Vector*>(grads + place) = g;
      }
#pragma unroll
      for (int v = 0; v < S::kVector; ++v) sums[v] += widen(g.v[v]);
    });
  }
};

// Starts to load weights[channel][output location][input location]; zeros for absent channels.
template <class T, int N, int kThreads>
__device__ __forceinline__ void load_weights(T* weights, const Region<const T>& from, int channels,
                                             bool vectors) {
  using S = Slab<T, N>;
  if (vectors && channels == S::kChannels) {
#pragma unroll 2
    for (int i = int(threadIdx.x) * S::kVector; i < S::kWeights; i += kThreads * S::kVector) {
      copy_async(weights + i, from.data + i, 16);
    }
    return;
  }
#pragma unroll 1
  for (int i = int(threadIdx.x); i < S::kWeights; i += kThreads) {
    const int c = i / (N * N);
    weights[i] = c < channels ? from.at(i / N % N, c)[i % N] : T{};
  }
}

// --- exact arithmetic ----------------------------------------------------------------------------

// Products of T (float or double) by multiply-adds. A thread keeps the weights of kOutputs
// locations in registers, and all threads of a channel read the same elements of a row at once: 144
// multiply-adds per 9 loads of 16 bytes for 36 locations in float32. In the backward kernel one
// team of threads computes the gradient of the input, another one that of the weights, whose sums
// it keeps in as many registers: 144 multiply-adds per 6 loads.
template <class T, int N>
struct Exact {
  using S = Slab<T, N>;
  static constexpr bool kInPlace = false;  // results go to memory directly
  static constexpr int kOutputs = sizeof(T) == 8 || N == 64 ? 2 : 4;
  static constexpr int kPerChannel = N / kOutputs;
  static constexpr int kPerRow = S::kChannels * kPerChannel;
  static constexpr int kTeam = 128;                // threads; for 36 locations two are idle
  static constexpr int kShares = kTeam / kPerRow;  // threads that divide the rows among them
  static constexpr int kForwardThreads = 2 * kTeam, kBackwardThreads = 2 * kTeam;
  static constexpr int kForwardBlocks = N == 16 ? 2 : 1, kBackwardBlocks = 1;  // per multiprocessor
  static constexpr int kForwardRows = N == 36 ? 56 : 64, kBackwardRows = N == 36 ? 56 : 32;
  // Piece of grad_weight per thread.
  static constexpr int kTall = (N == 36 ? 12 : 8) * 4 / sizeof(T), kWide = N * kOutputs / kTall;
  static_assert(N / kTall * (N / kWide) == kPerChannel, "");
  // Weights per output location, or sums of the piece of grad_weight.
  struct Registers {
    T r[kOutputs * N];
  };
  struct Bias {
    T b[kOutputs];
  };

  static __device__ __forceinline__ int team() { return int(threadIdx.x) / kTeam; }
  static __device__ __forceinline__ int me() { return int(threadIdx.x) % kTeam; }
  static __device__ __forceinline__ int my_share() { return me() / kPerRow; }
  static __device__ __forceinline__ int my_channel() { return me() % kPerRow / kPerChannel; }
  static __device__ __forceinline__ int my_output() { return me() % kPerChannel * kOutputs; }
  static __device__ __forceinline__ bool has_work(int channels) {
    return my_channel() < channels && my_share() < kShares;
  }

  static __device__ __forceinline__ void take_weights(Registers& mine, const T* weights,
                                                      bool transposed) {
    const T* from = weights + my_channel() * N * N;
    if (transposed) {
#pragma unroll
      for (int k = 0; k < N; ++k) {
        const auto w = *reinterpret_cast<const Pack<T, kOutputs>*>(from + k * N + my_output());
#pragma unroll
        for (int o = 0; o < kOutputs; ++o) mine.r[o * N + k] = w.v[o];
      }
    } else {
#pragma unroll
      for (int i = 0; i < kOutputs * N; i += S::kVector) {
        const auto w = *reinterpret_cast<const Pack<T, S::kVector>*>(from + my_output() * N + i);
#pragma unroll
        for (int v = 0; v < S::kVector; ++v) mine.r[i + v] = w.v[v];
      }
    }
  }

  static __device__ __forceinline__ Bias take_bias(const T* biases) {
    Bias mine;
#pragma unroll
    for (int o = 0; o < kOutputs; ++o) mine.b[o] = biases[my_channel() * N + my_output() + o];
    return mine;
  }

  // Multiplies the rows of a tile by the weights and stores the first `rows` results, which `to`
  // begins with, at least `least` if they are kBounded. kSharesOfRows threads divide the rows among
  // them.
  template <int kRows, int kSharesOfRows, bool kBounded>
  static __device__ __forceinline__ void multiply(const T* tile, const Registers& weights,
                                                  const Bias& bias, T least, const Region<T>& to,
                                                  int share, int rows) {
    constexpr int kStep = kSharesOfRows * S::kStride;
    constexpr int kBunch = N == 36 && sizeof(T) == 4 ? 28 / kSharesOfRows : 2;  // rows at once
    static_assert(kRows % (kBunch * kSharesOfRows) == 0, "");
    const T* row = tile + share * S::kStride + my_channel() * N;
    T* place = to.at(share, my_channel()) + my_output();
    const Step<T> step(kSharesOfRows * to.batch);
#pragma unroll 1
    for (int r = share; r < (rows < kRows ? rows : kRows); r += kBunch * kSharesOfRows) {
      T sum[kBunch][kOutputs];
#pragma unroll
      for (int e = 0; e < kBunch; ++e) {
#pragma unroll
        for (int o = 0; o < kOutputs; ++o) sum[e][o] = bias.b[o];
      }
#pragma unroll
      for (int k = 0; k < N; k += S::kVector) {
#pragma unroll
        for (int e = 0; e < kBunch; ++e) {
          const auto x = *reinterpret_cast<const Pack<T, S::kVector>*>(row + e * kStep + k);
#pragma unroll
          for (int v = 0; v < S::kVector; ++v) {
#pragma unroll
            for (int o = 0; o < kOutputs; ++o) sum[e][o] += x.v[v] * weights.r[o * N + k + v];
          }
        }
      }
#pragma unroll
      for (int e = 0; e < kBunch; ++e) {
        Pack<T, kOutputs> y;
#pragma unroll
        for (int o = 0; o < kOutputs; ++o) {
          y.v[o] = kBounded ? at_least(sum[e][o], least) : sum[e][o];
        }
        if (e == 0 || r + e * kSharesOfRows < rows) store_vector(place, y);
        place = step.from(place);
      }
      row += kBunch * kStep;
    }
  }

  static __device__ __forceinline__ int piece_row() {
    return me() % kPerChannel / (N / kWide) * kTall;
  }
  static __device__ __forceinline__ int piece_column() {
    return me() % kPerChannel % (N / kWide) * kWide;
  }

  // Adds the products of gradients (rows of grad_weight) and inputs (columns) of a tile.
  template <int kRows>
  static __device__ __forceinline__ void add(Registers& sums, const T* grads, const T* inputs,
                                             int rows) {
    using Vector = Pack<T, S::kVector>;
    const T* g_row = grads + my_share() * S::kStride + my_channel() * N + piece_row();
    const T* x_row = inputs + my_share() * S::kStride + my_channel() * N + piece_column();
    constexpr int kAll = kRows / kShares;                             // rows per thread
    constexpr int kBunch = sizeof(T) == 8 ? 1 : kAll < 4 ? kAll : 4;  // that are skipped together
    static_assert(kRows % (kBunch * kShares) == 0, "");
#pragma unroll kBunch
    for (int i = 0; i < kAll; ++i) {
      if (i % kBunch == 0 && my_share() + i * kShares >= rows) return;
      T g[kTall];
#pragma unroll
      for (int m = 0; m < kTall; m += S::kVector) {
        const Vector some = *reinterpret_cast<const Vector*>(g_row + m);
#pragma unroll
        for (int v = 0; v < S::kVector; ++v) g[m + v] = some.v[v];
      }
#pragma unroll
      for (int n = 0; n < kWide; n += S::kVector) {
        const Vector x = *reinterpret_cast<const Vector*>(x_row + n);
#pragma unroll
        for (int m = 0; m < kTall; ++m) {
#pragma unroll
          for (int v = 0; v < S::kVector; ++v) sums.r[m * kWide + n + v] += g[m] * x.v[v];
        }
      }
      g_row += kShares * S::kStride, x_row += kShares * S::kStride;
    }
  }

  // Adds the sums to total[channel][N * N + N]; the first share sets them.
  static __device__ __forceinline__ void add_to(T* total, const Registers& sums) {
    T* piece = total + my_channel() * (N * N + N) + piece_row() * N + piece_column();
#pragma unroll
    for (int m = 0; m < kTall; ++m) {
#pragma unroll
      for (int n = 0; n < kWide; ++n) {
        T& to = piece[m * N + n];
        to = my_share() == 0 ? sums.r[m * kWide + n] : to + sums.r[m * kWide + n];
      }
    }
  }
};

// --- tensor cores --------------------------------------------------------------------------------

// Products of T (16-bit types, or float as kProducts TF32 products) on tensor cores.
//
// A warp processes 16 rows of one channel at a time. The depth may be summed in any order that is
// the same in both operands, and the columns may be permuted. Lane (g, q) = (lane / 4, lane % 4)
// therefore holds of rows g and g + 8 the four adjacent elements from 4q of each 16, and of the
// last four of 36 element q: as operand, and as result, so that results can replace operands in
// place.
// Operands of all columns of the weights stay in registers. In the backward kernel half of the
// warps compute the gradient of the input, the others that of the weights, whose sums they keep in
// these registers.
template <class T, int N, int kProducts>
struct TensorCore {
  using S = Slab<T, N>;
  static constexpr bool kInPlace = true;  // results replace a tile, which is then stored
  static constexpr bool kWide = sizeof(T) == 4;
  static constexpr int kWarps = kWide ? 4 : 2;  // per channel
  static constexpr int kForwardThreads = 32 * kWarps * S::kChannels;
  static constexpr int kBackwardThreads = kForwardThreads;
  // Per multiprocessor.
  static constexpr int kForwardBlocks = kWide && N == 36 ? 1 : 2;
  static constexpr int kBackwardBlocks = N == 36 ? 1 : 2;
  static constexpr int kForwardRows = 64, kBackwardRows = 32;
  static constexpr int kShares = kWarps / 2;  // warps that divide the rows among them, backward
  static constexpr int kChunks = N / 16;      // of 16 locations
  static constexpr int kRest = N % 16 / 4;    // further elements per lane
  static constexpr int kEach = N / 4;         // elements of a row per lane
  static constexpr int kWords = kWide ? kEach : 2 * kChunks + kRest;  // that hold them
  static constexpr int kTiles = (N + 7) / 8;                          // of 8 columns
  static constexpr int kTall = (N + 15) / 16;                         // tiles of 16 rows
  static constexpr int kWeights = kTiles * kWords, kSums = kTall * kTiles * 4;
  // The rounding remainders of the weights are kept too, where there are enough registers.
  static constexpr bool kKeepsLow = kProducts == 3 && N < 64;
  struct Registers {
    float r[(kKeepsLow ? 2 : 1) * kWeights > kSums ? (kKeepsLow ? 2 : 1) * kWeights : kSums];
  };
  struct Bias {
    const float* b;  // [channel][location] in shared memory, or null
  };
  static __device__ __forceinline__ Bias take_bias(const float* biases) { return {biases}; }

  static __device__ __forceinline__ int g() { return int(threadIdx.x) % 32 / 4; }
  static __device__ __forceinline__ int q() { return int(threadIdx.x) % 4; }
  static __device__ __forceinline__ int my_channel() {
    return int(threadIdx.x) / 32 % S::kChannels;
  }
  static __device__ __forceinline__ int my_warp() {  // of the channel
    return int(threadIdx.x) / (32 * S::kChannels);
  }
  static __device__ __forceinline__ bool has_work(int channels) { return my_channel() < channels; }
  static __device__ __forceinline__ int team() { return my_warp() / kShares; }
  static __device__ __forceinline__ int my_share() { return my_warp() % kShares; }

  static __device__ __forceinline__ void split(float x, uint32_t& high, uint32_t& low) {
    high = to_tf32(x);
    low = to_tf32(x - bit_cast<float>(high));
  }

  // The location that is element i of this lane.
  static __device__ __forceinline__ int location(int i) {
    return i < 4 * kChunks ? 16 * (i / 4) + 4 * q() + i % 4 : N - 4 + q();
  }

  static __device__ __forceinline__ void take_weights(Registers& mine, const T* weights,
                                                      bool transposed) {
    const T* from = weights + my_channel() * N * N;
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      // The column of this lane in the operand is g; results 2q, 2q + 1 belong to lane q.
      const bool whole = t < 2 * kChunks;
      const int n = whole ? 16 * (t / 2) + g() / 2 * 4 + t % 2 * 2 + g() % 2 : N - 4 + g() / 2;
      const bool exists = whole || g() % 2 == 0;
      const auto element = [&](int i) {
        const int k = location(i);
        return exists ? from[transposed ? k * N + n : n * N + k] : T{};
      };
#pragma unroll
      for (int w = 0; w < kWords; ++w) {
        float& word = mine.r[t * kWords + w];
        if constexpr (kWide) {
          word = element(w);
          if constexpr (kProducts == 1) word = bit_cast<float>(to_tf32(word));
          if constexpr (kKeepsLow) {
            uint32_t high, low;
            split(word, high, low);
            word = bit_cast<float>(high), mine.r[kWeights + t * kWords + w] = bit_cast<float>(low);
          }
        } else {
          const T high = 2 * w + 1 < kEach ? element(2 * w + 1) : T{};
          word = bit_cast<float>(Pack<T, 2>{{element(2 * w), high}});
        }
      }
    }
  }

  // d += a b for one step of the depth.
  static __device__ __forceinline__ void product(float (&d)[4], const uint32_t (&a)[4],
                                                 const uint32_t (&b)[2]) {
    if constexpr (kWide) {
      mma_tf32(d, a, b);
    } else {
      mma<T>(d, a, b);
    }
  }

  // Adds to the results of all columns the products of words i and, if any, i + 1 of the rows.
  static __device__ __forceinline__ void add_products(float (&d)[kTiles][4], uint32_t (&a)[4],
                                                      const Registers& weights, int i) {
    uint32_t a_low[4];
    if constexpr (kWide) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float x = bit_cast<float>(a[j]);
        if constexpr (kProducts == 3) {
          split(x, a[j], a_low[j]);
        } else {
          a[j] = to_tf32(x);
        }
      }
    }
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      uint32_t b[2], b_low[2];
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const int place = t * kWords + (i + j) % kWords;
        b[j] = i + j < kWords ? bit_cast<uint32_t>(weights.r[place]) : 0;
        if constexpr (kKeepsLow) {
          b_low[j] = i + j < kWords ? bit_cast<uint32_t>(weights.r[kWeights + place]) : 0;
        } else if constexpr (kProducts == 3) {
          split(bit_cast<float>(b[j]), b[j], b_low[j]);
        }
      }
      if constexpr (kProducts == 3) {
        product(d[t], a_low, b);
        product(d[t], a, b_low);
      }
      product(d[t], a, b);
    }
  }

  // Multiplies the rows of a tile by the weights; `results`, which may be the tile, receives the
  // products, at least `least` if they are kBounded. kSharesOfRows warps divide the rows.
  template <int kRows, int kSharesOfRows, bool kBounded>
  static __device__ __forceinline__ void multiply(const T* tile, T* results,
                                                  const Registers& weights, const Bias& bias,
                                                  float least, int share, int rows) {
    constexpr int kPiece = sizeof(T);  // words of four elements
    struct Words {
      uint32_t w[kPiece];
    };
    if (rows > kRows) rows = kRows;
#pragma unroll 1
    for (int r = 16 * share; r < rows; r += 16 * kSharesOfRows) {
      const int first = (r + g()) * S::kStride + my_channel() * N, second = first + 8 * S::kStride;
      float d[kTiles][4];
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const bool exists = bias.b != nullptr && (t < 2 * kChunks || i == 0);
          d[t][i] = exists ? bias.b[my_channel() * N + location(2 * t + i)] : 0.f;
          d[t][i + 2] = d[t][i];
        }
      }
#pragma unroll
      for (int chunk = 0; chunk < kChunks; ++chunk) {
        const int k = 16 * chunk + 4 * q();
        const auto x = bit_cast<Words>(*reinterpret_cast<const Pack<T, 4>*>(tile + first + k));
        const auto y = bit_cast<Words>(*reinterpret_cast<const Pack<T, 4>*>(tile + second + k));
#pragma unroll
        for (int i = 0; i < kPiece; i += 2) {
          uint32_t a[4] = {x.w[i], y.w[i], x.w[i + 1], y.w[i + 1]};
          add_products(d, a, weights, chunk * kPiece + i);
        }
      }
      if constexpr (kRest > 0) {
        const int k = N - 4 + q();
        uint32_t a[4] = {word_of(tile[first + k]), word_of(tile[second + k]), 0, 0};
        add_products(d, a, weights, kWords - 1);
      }
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        T* const row = results + (half == 0 ? first : second);
        const auto y = [&](int t, int i) {
          const float x = d[t][2 * half + i];
          return kBounded ? at_least(x, least) : x;
        };
#pragma unroll
        for (int chunk = 0; chunk < kChunks; ++chunk) {
          const int t = 2 * chunk;
          *reinterpret_cast<Pack<T, 4>*>(row + 16 * chunk + 4 * q()) = narrow_pack<T>(
              {{y(t, 0), y(t, 1), y(t + 1, 0), y(t + 1, 1)}});
        }
        if constexpr (kRest > 0) row[N - 4 + q()] = narrow<T>(y(kTiles - 1, 0));
      }
    }
  }

  static __device__ __forceinline__ uint32_t word_of(T x) {
    if constexpr (kWide) {
      return bit_cast<uint32_t>(x);
    } else {
      return x.bits;
    }
  }

  // Adds the products of gradients (rows of grad_weight) and inputs (columns) of a tile.
  template <int kRows>
  static __device__ __forceinline__ void add(Registers& sums, const T* grads, const T* inputs,
                                             int rows) {
    if (rows > kRows) rows = kRows;
#pragma unroll 1
    for (int r = 16 * my_share(); r < rows; r += 16 * kShares) {
      const int first = r * S::kStride + my_channel() * N;
      if constexpr (kWide) {
#pragma unroll 1
        for (int half = 0; half < 2; ++half) {
          const int row = first + (8 * half + q()) * S::kStride;
          add_eight(sums, grads + row, inputs + row);
        }
      } else {
        add_sixteen(sums, grads + first - shift(), inputs + first - shift());
      }
    }
  }

  // Eight samples; this lane holds those q and q + 4.
  static __device__ __forceinline__ void add_eight(Registers& sums, const T* grads,
                                                   const T* inputs) {
    // Locations 8 block + g, rounded; 0 beyond the end.
    const auto take = [&](const T* row, int block, uint32_t& high, uint32_t& low) {
      const int location = 8 * block + g();
      const float x = 8 * block + 8 <= N || location < N ? row[location] : 0.f;
      if constexpr (kProducts == 3) {
        split(x, high, low);
      } else {
        high = to_tf32(x);
      }
    };
    constexpr int kTogether = N == 64 ? 2 : kTall;  // as registers allow
#pragma unroll
    for (int first = 0; first < kTall; first += kTogether) {
      uint32_t high[kTogether][4], low[kTogether][4];
#pragma unroll
      for (int m = 0; m < kTogether; ++m) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int block = 2 * (first + m) + i % 2;
          high[m][i] = low[m][i] = 0;
          if (block < kTiles) take(grads + i / 2 * 4 * S::kStride, block, high[m][i], low[m][i]);
        }
      }
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
        uint32_t b[2], b_low[2];
#pragma unroll
        for (int i = 0; i < 2; ++i) take(inputs + 4 * i * S::kStride, t, b[i], b_low[i]);
#pragma unroll
        for (int m = 0; m < kTogether; ++m) {
          float (&d)[4] = reinterpret_cast<float (&)[4]>(sums.r[((first + m) * kTiles + t) * 4]);
          if constexpr (kProducts == 3) {
            product(d, low[m], b);
            product(d, high[m], b_low);
          }
          product(d, high[m], b);
        }
      }
    }
  }

  // Sixteen samples. ldmatrix needs rows of eight elements at multiples of 16 bytes: for odd
  // channels of 36 locations they begin with the last four of the channel before. Elements of other
  // channels, and padding, affect only sums that are not used.
  static __device__ __forceinline__ int shift() { return my_channel() * N % 8; }
  static __device__ __forceinline__ void add_sixteen(Registers& sums, const T* grads,
                                                     const T* inputs) {
    const int lane = int(threadIdx.x) % 32;
    uint32_t a[kTall][4];
#pragma unroll
    for (int m = 0; m < kTall; ++m) {
      load_transposed(a[m],
                      grads + (lane / 16 * 8 + lane % 8) * S::kStride + 16 * m + lane / 8 % 2 * 8);
    }
#pragma unroll
    for (int t = 0; t < kTiles; t += 2) {
      uint32_t b[4];
      load_transposed(b, inputs + lane % 16 * S::kStride + 8 * t + lane / 16 * 8);
#pragma unroll
      for (int i = t; i < t + 2 && i < kTiles; ++i) {
#pragma unroll
        for (int m = 0; m < kTall; ++m) {
          float (&d)[4] = reinterpret_cast<float (&)[4]>(sums.r[(m * kTiles + i) * 4]);
          product(d, a[m], {b[2 * (i - t)], b[2 * (i - t) + 1]});
        }
      }
    }
  }

  // Adds the sums to total[channel][N * N + N]; the first share sets them.
  static __device__ __forceinline__ void add_to(float* total, const Registers& sums) {
    total += my_channel() * (N * N + N);
    const int shifted = kWide ? 0 : shift();
#pragma unroll
    for (int m = 0; m < kTall; ++m) {
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int row = 16 * m + g() + i / 2 * 8 - shifted;
          const int column = 8 * t + 2 * q() + i % 2 - shifted;
          if (row < 0 || row >= N || column < 0 || column >= N) continue;
          float& to = total[row * N + column];
          const float sum = sums.r[(m * kTiles + t) * 4 + i];
          to = my_share() == 0 ? sum : to + sum;
        }
      }
    }
  }
};

// --- sums over the batch -------------------------------------------------------------------------

// Writes sums k to k + V - 1 of a channel, weights before biases, where these are wanted.
template <class T, int V>
__device__ __forceinline__ void write_gradients(const LinearBackward& p, int64_t channel, int64_t k,
                                                const Pack<acc_t<T>, V>& sums) {
  const int64_t weights = p.n_out * p.n_in;
  T* to = static_cast<T*>(k < weights ? p.grad_weight : p.grad_bias);
  if (to == nullptr) return;
  to += k < weights ? channel * weights + k : channel * p.n_out + k - weights;
  Pack<T, V> rounded;
#pragma unroll
  for (int i = 0; i < V; ++i) rounded.v[i] = narrow<T>(sums.v[i]);
  if constexpr (V == 1) {
    *to = rounded.v[0];
  } else {
    store_vector(to, rounded);
  }
}

// Writes total[channel][N * N + N] of a block, as gradients or into `partial`.
template <class T, int N, int kThreads>
__device__ __forceinline__ void write_sums(const LinearBackward& p, const acc_t<T>* total,
                                           int64_t slice, const Work& work, acc_t<T>* partial) {
  constexpr int V = 16 / sizeof(acc_t<T>), kSums = N * N + N;
#pragma unroll 1
  for (int i = int(threadIdx.x) * V; i < work.channels * kSums; i += kThreads * V) {
    const int64_t channel = work.c0 + i / kSums;
    const int k = i % kSums;
    if ((k < N * N ? p.grad_weight : p.grad_bias) == nullptr) continue;
    const auto sums = *reinterpret_cast<const Pack<acc_t<T>, V>*>(total + i);
    if (partial != nullptr) {
      store_vector(partial + (slice * p.channels + channel) * kSums + k, sums);
    } else {
      write_gradients<T, V>(p, channel, k, sums);
    }
  }
}

// Sums that a thread of add_slices adds at a time.
template <class T>
constexpr int kSumsAtOnce = 16 / sizeof(acc_t<T>);

// Adds the sums of the slices in order, V neighbours at a time.
template <class T, int V>
__global__ void __launch_bounds__(256)
    add_slices(LinearBackward p, int64_t slices, const acc_t<T>* partial) {
  using Vector = Pack<acc_t<T>, V>;
  const int64_t weights = p.n_out * p.n_in, size = weights + p.n_out;
  for (int64_t c = blockIdx.x; c < p.channels; c += gridDim.x) {
    for (int64_t i = (int64_t(blockIdx.y) * 256 + threadIdx.x) * V; i < size;
         i += int64_t(gridDim.y) * 256 * V) {
      if ((i < weights ? p.grad_weight : p.grad_bias) == nullptr) continue;
      Vector sum{};
#pragma unroll 4
      for (int64_t s = 0; s < slices; ++s) {
        const Vector x = *reinterpret_cast<const Vector*>(partial + (s * p.channels + c) * size +
                                                          i);
#pragma unroll
        for (int v = 0; v < V; ++v) sum.v[v] += x.v[v];
      }
      write_gradients<T, V>(p, c, i, sum);
    }
  }
}

// --- kernels -------------------------------------------------------------------------------------
// Outputs and workspaces are contiguous and aligned to 16 bytes, as torch allocates them.

// Shared memory of a kernel that loads kTensors tensors: kStages tiles of each, and in the forward
// kernel the biases. The weights lie in the last stage until the threads have them in registers.
template <class T, int N, int kRows, int kTensors>
struct Stages {
  static constexpr int kTile = kRows * Slab<T, N>::kStride;
  static constexpr int kStage = kTensors * kTile;
  static constexpr int kStages = kTensors == 1 ? 3 : 2;
  static constexpr int kLast = (kStages - 1) * kStage;
  static constexpr size_t kBytes = kStages * kStage * sizeof(T) +
                                   (kTensors == 1 ? Slab<T, N>::kSize * sizeof(acc_t<T>) : 0);
  static_assert(Slab<T, N>::kWeights <= kStage, "");
  static_assert(kBytes <= 99 << 10, "a block of compute capability 8.6 and 8.9 has no more");
};

template <class Math, class T, int N>
__global__ void __launch_bounds__(Math::kForwardThreads, Math::kForwardBlocks)
    forward_square(LinearForward p, Slices s, bool vectors) {
  constexpr int kThreads = Math::kForwardThreads, kRows = Math::kForwardRows;
  using Memory = Stages<T, N, kRows, 1>;
  using Tiles = Tile<T, N, kRows, kThreads>;
  using S = Slab<T, N>;
  using A = acc_t<T>;
  CEK_DYNAMIC_SHARED(memory);
  T* const tiles = reinterpret_cast<T*>(memory);
  T* const weights = tiles + Memory::kLast;
  A* const biases = reinterpret_cast<A*>(tiles + Memory::kStages * Memory::kStage);
  const A least = p.relu ? A(0) : -A(INFINITY);
  for (int64_t block = blockIdx.x; block < s.groups * s.slices; block += gridDim.x) {
    const Work work(block, s, p.batch, p.channels, S::kChannels);
    typename Tiles::template Rows<const T> input(
        region(static_cast<const T*>(p.input), p.input_batch, p.input_channel, work.first, work.c0),
        work.channels, vectors);
    const auto load = [&](T* tile, int rows) {
      if (rows > 0) Tiles::load(tile, input, rows, typename Tiles::Sizes(rows));
      input.next();
      commit_copies();
    };
    __syncthreads();  // the previous iteration may still be reading
    load_weights<T, N, kThreads>(
        weights,
        region(static_cast<const T*>(p.weight), p.weight_row, p.weight_channel, 0, work.c0),
        work.channels, vectors);
#pragma unroll
    for (int i = 0; i < Memory::kStages - 1; ++i) {
      load(tiles + i * Memory::kStage, work.rows - i * kRows);
    }
    const T* bias = static_cast<const T*>(p.bias);
    for (int i = int(threadIdx.x); i < S::kSize; i += kThreads) {
      const bool exists = bias != nullptr && i / N < work.channels;
      biases[i] = exists ? widen(bias[(work.c0 + i / N) * p.bias_channel + i % N]) : A(0);
    }
    wait_copies<Memory::kStages - 2>();
    __syncthreads();
    const auto my_bias = Math::take_bias(biases);
    typename Math::Registers my_weights;
    Math::take_weights(my_weights, weights, false);

    const auto output = region(static_cast<T*>(p.output), p.channels * N, N, work.first, work.c0);
    typename Tiles::template Rows<T> to(output, work.channels, vectors);
    const bool multiplies = Math::has_work(work.channels);
    const int share = Math::team() * Math::kShares + Math::my_share();  // both teams multiply
    auto from_here = output;
    T *tile = tiles, *free = tiles + Memory::kLast;
    for (int rows = work.rows; rows > 0; rows -= kRows) {
      wait_copies<Memory::kStages - 2>();
      __syncthreads();
      load(free, rows - (Memory::kStages - 1) * kRows);
      if constexpr (Math::kInPlace) {
        if (multiplies) {
          Math::template multiply<kRows, 2 * Math::kShares, true>(tile, tile, my_weights, my_bias,
                                                                  least, share, rows);
        }
        __syncthreads();
        Tiles::store(tile, to, rows);
        to.next();
      } else {
        if (multiplies) {
          Math::template multiply<kRows, 2 * Math::kShares, true>(tile, my_weights, my_bias, least,
                                                                  from_here, share, rows);
        }
        from_here.data += kRows * output.batch;
      }
      free = tile;
      tile = tile == tiles + Memory::kLast ? tiles : tile + Memory::kStage;
    }
    wait_copies<0>();
  }
}

// `partial`: sums per slice, (slices, channels, N * N + N), weight before bias; null for one slice.
template <class Math, class T, int N>
__global__ void __launch_bounds__(Math::kBackwardThreads, Math::kBackwardBlocks)
    backward_square(LinearBackward p, Slices s, bool vectors, acc_t<T>* partial) {
  using A = acc_t<T>;
  constexpr int kThreads = Math::kBackwardThreads, kRows = Math::kBackwardRows;
  using Memory = Stages<T, N, kRows, 3>;
  using Tiles = Tile<T, N, kRows, kThreads>;
  using S = Slab<T, N>;
  constexpr int kSums = N * N + N;  // per channel
  static_assert((S::kChannels * kSums + Tiles::kAtOnce * S::kSize) * sizeof(A) <=
                    Memory::kStages * Memory::kStage * sizeof(T),
                "");
  CEK_DYNAMIC_SHARED(memory);
  T* const tiles = reinterpret_cast<T*>(memory);
  T* const weights = tiles + Memory::kLast;
  for (int64_t block = blockIdx.x; block < s.groups * s.slices; block += gridDim.x) {
    const Work work(block, s, p.batch, p.channels, S::kChannels);
    const auto rows_of = [&](const void* data, int64_t batch, int64_t channel) {
      return typename Tiles::template Rows<const T>(
          region(static_cast<const T*>(data), batch, channel, work.first, work.c0), work.channels,
          vectors);
    };
    auto grad_output = rows_of(p.grad_output, p.grad_batch, p.grad_channel);
    auto output = rows_of(p.output, p.output_batch, p.output_channel);
    auto input = rows_of(p.input, p.input_batch, p.input_channel);
    const auto load = [&](T* stage, int rows) {
      if (rows > 0) {
        const typename Tiles::Sizes sizes(rows);
        Tiles::load(stage, grad_output, rows, sizes);
        if (p.output != nullptr) Tiles::load(stage + Memory::kTile, output, rows, sizes);
        if (p.grad_weight != nullptr) Tiles::load(stage + 2 * Memory::kTile, input, rows, sizes);
      }
      grad_output.next(), output.next(), input.next();
      commit_copies();
    };
    __syncthreads();  // the previous iteration may still be reading
    if (p.grad_input != nullptr) {
      load_weights<T, N, kThreads>(
          weights,
          region(static_cast<const T*>(p.weight), p.weight_row, p.weight_channel, 0, work.c0),
          work.channels, vectors);
    }
#pragma unroll
    for (int i = 0; i < Memory::kStages - 1; ++i) {
      load(tiles + i * Memory::kStage, work.rows - i * kRows);
    }
    wait_copies<Memory::kStages - 2>();
    __syncthreads();
    const bool wanted = (Math::team() == 0 ? p.grad_input : p.grad_weight) != nullptr;
    const int team = wanted && Math::has_work(work.channels) ? Math::team() : -1;
    // The weights in the first team, the sums in the second one.
    typename Math::Registers registers;
    if (team == 0) {
      Math::take_weights(registers, weights, true);
    } else {
      registers = {};
    }
    A bias_sums[S::kVector] = {};

    const auto results = region(static_cast<T*>(p.grad_input), p.channels * N, N, work.first,
                                work.c0);
    typename Tiles::template Rows<T> to(results, work.channels, vectors);
    auto from_here = results;
    T *stage = tiles, *free = tiles + Memory::kLast;
    for (int rows = work.rows; rows > 0; rows -= kRows) {
      T *const grads = stage, *const outputs = stage + Memory::kTile;
      const T* const inputs = stage + 2 * Memory::kTile;
      wait_copies<Memory::kStages - 2>();
      Tiles::gate(grads, p.output != nullptr ? outputs : nullptr, bias_sums);
      __syncthreads();
      load(free, rows - (Memory::kStages - 1) * kRows);
      if constexpr (Math::kInPlace) {
        if (team == 0) {
          Math::template multiply<kRows, Math::kShares, false>(grads, outputs, registers, {}, 0,
                                                               Math::my_share(), rows);
        }
      } else {
        if (team == 0) {
          Math::template multiply<kRows, Math::kShares, false>(grads, registers, {}, 0, from_here,
                                                               Math::my_share(), rows);
        }
        from_here.data += kRows * results.batch;
      }
      if (team == 1) Math::template add<kRows>(registers, grads, inputs, rows);
      if constexpr (Math::kInPlace) {
        __syncthreads();
        if (p.grad_input != nullptr) Tiles::store(outputs, to, rows);
        to.next();
      }
      free = stage;
      stage = stage == tiles + Memory::kLast ? tiles : stage + Memory::kStage;
    }
    wait_copies<0>();

    // The sums of all threads, in shared memory in a fixed order.
    A* const total = reinterpret_cast<A*>(tiles);
    A* const bias_shares = total + S::kChannels * kSums;
    __syncthreads();
    if (p.grad_bias != nullptr && Tiles::my_row() < Tiles::kAtOnce) {
#pragma unroll
      for (int v = 0; v < S::kVector; ++v) {
        bias_shares[Tiles::my_row() * S::kSize + Tiles::my_element() + v] = bias_sums[v];
      }
    }
#pragma unroll 1
    for (int share = 0; share < Math::kShares; ++share) {
      if (team == 1 && Math::my_share() == share) Math::add_to(total, registers);
      __syncthreads();
    }
    if (p.grad_bias != nullptr) {
      for (int i = int(threadIdx.x); i < S::kSize; i += kThreads) {
        A sum = 0;
#pragma unroll 4
        for (int r = 0; r < Tiles::kAtOnce; ++r) sum += bias_shares[r * S::kSize + i];
        total[i / N * kSums + N * N + i % N] = sum;
      }
    }
    __syncthreads();
    write_sums<T, N, kThreads>(p, total, block / s.groups, work, partial);
  }
}

// --- any size ------------------------------------------------------------------------------------

constexpr int kTileSide = 64;  // rows and columns per block
constexpr int kDepth = 16;     // depth of the operands in shared memory
constexpr int kEach = 4;       // rows and columns per thread
constexpr int kTileThreads = kTileSide / kEach * kTileSide / kEach;

// One matrix per channel; at(c, row, column) is the place of an element.
template <class T>
struct View {
  const T* data;
  int64_t channel, row, column;
  __device__ __forceinline__ int64_t at(int64_t c, int64_t r, int64_t k) const {
    return c * channel + r * row + k * column;
  }
};

// out (rows, columns) = a (rows, depth) b (depth, columns) + bias (columns), per channel. `gate`
// has the shape of a: where it is not positive, a is taken as 0. `row_sums` receives the sums of
// the rows of a. With `partial`, only slice blockIdx.y of the depth, of `slice` elements, is summed:
// into partial (slices, channels, sums), where the sums of the rows of a follow the products.
template <class T>
struct Product {
  int64_t channels, rows, columns, depth;
  View<T> a, gate, b;
  const T* bias;
  int64_t bias_channel;
  bool relu;
  T* out;
  int64_t out_channel, out_row;
  T* row_sums;  // (channels, rows)
  acc_t<T>* partial;
  int64_t slice, sums;
};

// The elements of a tile of 64 lines (rows, or columns) and kDepth that a thread loads: from `line` and
// `depth` on in steps of `lines` and `depths`.
constexpr int kPerThread = kDepth * kTileSide / kTileThreads;
struct Part {
  int line, depth, lines, depths;

  static __device__ __forceinline__ Part of(bool along_depth, int side) {
    const int me = int(threadIdx.x);
    if (along_depth) return {me / kDepth, me % kDepth, kTileThreads / kDepth, 0};
    return {me % side, me / side, 0, kTileThreads / side};
  }
};

template <class T>
__global__ void __launch_bounds__(kTileThreads) multiply(Product<T> p) {
  using A = acc_t<T>;
  constexpr int kRows = kTileSide, kColumns = kTileSide;
  // Rows are multiples of 16 bytes: the kEach elements of a thread are one load (two for double).
  alignas(16) __shared__ A a_tile[kDepth][kRows + kEach];
  alignas(16) __shared__ A b_tile[kDepth][kColumns + kEach];
  const int64_t row_tiles = (p.rows + kRows - 1) / kRows;
  const int64_t column_tiles = p.columns > 0 ? (p.columns + kColumns - 1) / kColumns : 1;
  const int my_row = int(threadIdx.x) / (kColumns / kEach) * kEach;
  const int my_column = int(threadIdx.x) % (kColumns / kEach) * kEach;

  for (int64_t block = blockIdx.x; block < p.channels * row_tiles * column_tiles;
       block += gridDim.x) {
    const int64_t c = block % p.channels, tile = block / p.channels;
    const int64_t row0 = tile / column_tiles * kRows, column0 = tile % column_tiles * kColumns;
    A sum[kEach][kEach] = {};
    A row_sum[kEach] = {};
    const int64_t begin = blockIdx.y * p.slice, left = p.depth - begin;
    const int64_t end = left < p.slice ? p.depth : begin + p.slice;
    // The elements that this thread loads. Neighbouring threads read along the contiguous dimension.
    const Part a = Part::of(p.a.column == 1, kRows), b = Part::of(p.b.column != 1, kColumns);
    const int64_t a_step = a.lines * p.a.row + a.depths * p.a.column;
    const int64_t gate_step = a.lines * p.gate.row + a.depths * p.gate.column;
    const int64_t b_step = b.lines * p.b.column + b.depths * p.b.row;
    int64_t a_at = p.a.at(c, row0 + a.line, begin + a.depth);
    int64_t gate_at = p.gate.at(c, row0 + a.line, begin + a.depth);
    int64_t b_at = p.b.at(c, begin + b.depth, column0 + b.line);
    const int rows = p.rows - row0 < kRows ? int(p.rows - row0) : kRows;
    const int columns = p.columns - column0 < kColumns ? int(p.columns - column0) : kColumns;
    for (int64_t k0 = begin; k0 < end; k0 += kDepth) {
      const int depth = end - k0 < kDepth ? int(end - k0) : kDepth;
      __syncthreads();
#pragma unroll
      for (int i = 0; i < kPerThread; ++i) {
        const int r = a.line + i * a.lines, k = a.depth + i * a.depths;
        const bool exists = r < rows && k < depth;
        A x = exists ? A(widen(p.a.data[a_at + i * a_step])) : A(0);
        if (exists && p.gate.data != nullptr && !(widen(p.gate.data[gate_at + i * gate_step]) > 0))
          x = 0;
        a_tile[k][r] = x;
      }
#pragma unroll
      for (int i = 0; i < kPerThread; ++i) {
        const int n = b.line + i * b.lines, k = b.depth + i * b.depths;
        b_tile[k][n] = n < columns && k < depth ? A(widen(p.b.data[b_at + i * b_step])) : A(0);
      }
      a_at += kDepth * p.a.column, gate_at += kDepth * p.gate.column, b_at += kDepth * p.b.row;
      __syncthreads();
#pragma unroll 4
      for (int k = 0; k < kDepth; ++k) {
#pragma unroll
        for (int m = 0; m < kEach; ++m) {
          const A x = a_tile[k][my_row + m];
#pragma unroll
          for (int n = 0; n < kEach; ++n) sum[m][n] += x * b_tile[k][my_column + n];
        }
      }
      if (p.row_sums != nullptr && column0 + my_column == 0) {
#pragma unroll 4
        for (int k = 0; k < kDepth; ++k) {
#pragma unroll
          for (int m = 0; m < kEach; ++m) row_sum[m] += a_tile[k][my_row + m];
        }
      }
    }
    A* const partial = p.partial != nullptr ? p.partial + (blockIdx.y * p.channels + c) * p.sums
                                            : nullptr;
#pragma unroll
    for (int m = 0; m < kEach; ++m) {
      const int64_t row = row0 + my_row + m;
      if (row >= p.rows) continue;
      if (p.row_sums != nullptr && column0 + my_column == 0) {
        if (partial != nullptr) {
          partial[p.sums - p.rows + row] = row_sum[m];
        } else {
          p.row_sums[c * p.rows + row] = narrow<T>(row_sum[m]);
        }
      }
#pragma unroll
      for (int n = 0; n < kEach; ++n) {
        const int64_t column = column0 + my_column + n;
        if (column >= p.columns) continue;
        A y = sum[m][n];
        if (partial != nullptr) {
          partial[row * p.out_row + column] = y;
          continue;
        }
        if (p.bias != nullptr) y += A(widen(p.bias[c * p.bias_channel + column]));
        if (p.relu && y < 0) y = 0;  // preserves NaN
        p.out[c * p.out_channel + row * p.out_row + column] = narrow<T>(y);
      }
    }
  }
}

// --- selection and launch ------------------------------------------------------------------------

template <class Math>
struct Kind {
  using type = Math;
};

template <int N>
struct Size {
  static constexpr int value = N;
};

// Calls f(Kind<Math>, T(), Size<N>) if there is a kernel of the exact size, else otherwise(T()).
template <class T, int N, class F, class Otherwise>
auto with_math(Products products, F f, Otherwise otherwise) {
  if constexpr (sizeof(T) == 2) {
    return f(Kind<TensorCore<T, N, 1>>(), T(), Size<N>());
  } else if constexpr (sizeof(T) == 4) {
    if (products == Products::tf32) return f(Kind<TensorCore<T, N, 1>>(), T(), Size<N>());
    if (products == Products::tf32x3) return f(Kind<TensorCore<T, N, 3>>(), T(), Size<N>());
    return f(Kind<Exact<T, N>>(), T(), Size<N>());
  } else if constexpr (N < 64) {
    return f(Kind<Exact<T, N>>(), T(), Size<N>());
  } else {
    return otherwise(T());  // 32 KiB of weights leave no space for the tiles
  }
}

template <class T, class Params, class F, class Otherwise>
auto with_size(const Params& p, F f, Otherwise otherwise) {
  if (p.n_in == p.n_out) {
    switch (p.n_in) {
      case 16: return with_math<T, 16>(p.products, f, otherwise);
      case 36: return with_math<T, 36>(p.products, f, otherwise);
      case 64: return with_math<T, 64>(p.products, f, otherwise);
    }
  }
  return otherwise(T());
}

template <class Params, class F, class Otherwise>
auto choose(const Params& p, F f, Otherwise otherwise) {
  switch (p.dtype) {
    case DType::f64: return with_size<double>(p, f, otherwise);
    case DType::bf16: return with_size<BFloat16>(p, f, otherwise);
    case DType::f16: return with_size<Half>(p, f, otherwise);
    default: return with_size<float>(p, f, otherwise);
  }
}

// True if the rows of all channels of a sample are contiguous and can be accessed in 16 bytes.
template <class T>
bool slabs_at(const void* pointer, int64_t batch, int64_t channel, int64_t n) {
  return aligned(pointer, 16) && batch * int64_t(sizeof(T)) % 16 == 0 && channel == n;
}

constexpr int64_t kMultiprocessors = 128;  // about, of a large GPU

int64_t blocks_of(int64_t channels, int64_t rows, int64_t columns) {
  return channels * divide_up(rows, kTileSide) * (columns > 0 ? divide_up(columns, kTileSide) : 1);
}

// Slices of the batch for the gradients of weight and bias of any size, where there are fewer tiles
// than a GPU needs blocks: of at least 64 samples.
Slices slices_of_any(const LinearBackward& p) {
  const int64_t blocks = blocks_of(p.channels, p.n_out, p.grad_weight != nullptr ? p.n_in : 0);
  Slices s{p.channels, 1, p.batch};
  if (blocks == 0 || p.batch <= 64) return s;
  const int64_t wanted = divide_up(2 * kMultiprocessors, blocks), most = divide_up(p.batch, 64);
  s.rows = divide_up(divide_up(p.batch, wanted < most ? wanted : most), kDepth) * kDepth;
  s.slices = divide_up(p.batch, s.rows);
  return s;
}

template <class T>
void start(Product<T> p, int64_t slices, void* stream) {
  if (slices == 1) p.slice = p.depth;
  CEK_LAUNCH(multiply<T>, grid_of(blocks_of(p.channels, p.rows, p.columns), slices), kTileThreads,
             stream, p);
}

template <class T>
void start_add_slices(const LinearBackward& p, int64_t slices, const acc_t<T>* partial,
                      void* stream) {
  constexpr int V = kSumsAtOnce<T>;
  const int64_t size = p.n_out * p.n_in + p.n_out;
  if (p.n_out % V == 0 && size % V == 0) {
    const dim3 grid = grid_of(p.channels, divide_up(size, 256 * V));
    CEK_LAUNCH((add_slices<T, V>), grid, 256, stream, p, slices, partial);
  } else {
    const dim3 grid = grid_of(p.channels, divide_up(size, 256));
    CEK_LAUNCH((add_slices<T, 1>), grid, 256, stream, p, slices, partial);
  }
}

template <class T>
const T* of(const void* pointer) {
  return static_cast<const T*>(pointer);
}

template <class T>
void forward_any(const LinearForward& p, void* stream) {
  Product<T> q{};
  q.channels = p.channels, q.rows = p.batch, q.columns = p.n_out, q.depth = p.n_in;
  q.a = {of<T>(p.input), p.input_channel, p.input_batch, 1};
  q.b = {of<T>(p.weight), p.weight_channel, 1, p.weight_row};
  q.bias = of<T>(p.bias), q.bias_channel = p.bias_channel, q.relu = p.relu;
  q.out = static_cast<T*>(p.output), q.out_channel = p.n_out, q.out_row = p.channels * p.n_out;
  start(q, 1, stream);
}

template <class T>
void backward_any(const LinearBackward& p, void* workspace, void* stream) {
  if (p.grad_input != nullptr && p.batch * p.n_in > 0) {
    Product<T> q{};
    q.channels = p.channels, q.rows = p.batch, q.columns = p.n_in, q.depth = p.n_out;
    q.a = {of<T>(p.grad_output), p.grad_channel, p.grad_batch, 1};
    q.gate = {of<T>(p.output), p.output_channel, p.output_batch, 1};
    q.b = {of<T>(p.weight), p.weight_channel, p.weight_row, 1};
    q.out = static_cast<T*>(p.grad_input);
    q.out_channel = p.n_in, q.out_row = p.channels * p.n_in;
    start(q, 1, stream);
  }
  if (p.grad_weight != nullptr || p.grad_bias != nullptr) {
    Product<T> q{};
    q.channels = p.channels, q.rows = p.n_out, q.depth = p.batch;
    q.columns = p.grad_weight != nullptr ? p.n_in : 0;  // 0: only the sums of the rows
    q.a = {of<T>(p.grad_output), p.grad_channel, 1, p.grad_batch};
    q.gate = {of<T>(p.output), p.output_channel, 1, p.output_batch};
    q.b = {of<T>(p.input), p.input_channel, p.input_batch, 1};
    q.out = static_cast<T*>(p.grad_weight);
    q.out_channel = p.n_out * p.n_in, q.out_row = p.n_in;
    q.row_sums = static_cast<T*>(p.grad_bias);
    const Slices s = slices_of_any(p);
    if (s.slices > 1) q.partial = static_cast<acc_t<T>*>(workspace);
    q.slice = s.rows, q.sums = p.n_out * p.n_in + p.n_out;
    start(q, s.slices, stream);
    if (s.slices > 1) start_add_slices<T>(p, s.slices, q.partial, stream);
  }
}

template <class Math, class T, int N>
void forward(Kind<Math>, T, Size<N>, const LinearForward& p, void* stream) {
  constexpr int kRows = Math::kForwardRows;
  const bool vectors = slabs_at<T>(p.input, p.input_batch, p.input_channel, N) &&
                       slabs_at<T>(p.output, p.channels * N, N, N) &&
                       slabs_at<T>(p.weight, p.weight_channel, p.weight_row, N) &&
                       p.weight_channel == N * N;
  const Slices s = slices_of(p.batch, p.channels, Slab<T, N>::kChannels, kRows,
                             kMultiprocessors * Math::kForwardBlocks);
  CEK_LAUNCH_SHARED((forward_square<Math, T, N>), grid_of(s.groups * s.slices),
                    Math::kForwardThreads, (Stages<T, N, kRows, 1>::kBytes), stream, p, s, vectors);
}

template <class Math, class T, int N>
Slices backward_slices(const LinearBackward& p) {
  return slices_of(p.batch, p.channels, Slab<T, N>::kChannels, Math::kBackwardRows,
                   kMultiprocessors);
}

template <class Math, class T, int N>
void backward(Kind<Math>, T, Size<N>, const LinearBackward& p, void* workspace, void* stream) {
  constexpr int kRows = Math::kBackwardRows;
  const bool vectors = slabs_at<T>(p.grad_output, p.grad_batch, p.grad_channel, N) &&
                       (p.output == nullptr ||
                        slabs_at<T>(p.output, p.output_batch, p.output_channel, N)) &&
                       slabs_at<T>(p.input, p.input_batch, p.input_channel, N) &&
                       slabs_at<T>(p.grad_input, p.channels * N, N, N) &&
                       slabs_at<T>(p.weight, p.weight_channel, p.weight_row, N) &&
                       p.weight_channel == N * N;
  const Slices s = backward_slices<Math, T, N>(p);
  const bool sums = p.grad_weight != nullptr || p.grad_bias != nullptr;
  auto* partial = sums && s.slices > 1 ? static_cast<acc_t<T>*>(workspace) : nullptr;
  CEK_LAUNCH_SHARED((backward_square<Math, T, N>), grid_of(s.groups * s.slices),
                    Math::kBackwardThreads, (Stages<T, N, kRows, 3>::kBytes), stream, p, s, vectors,
                    partial);
  if (partial != nullptr) start_add_slices<T>(p, s.slices, partial, stream);
}

}  // namespace

size_t workspace_bytes(const LinearForward&) { return 0; }

size_t workspace_bytes(const LinearBackward& p) {
  if (p.grad_weight == nullptr && p.grad_bias == nullptr) return 0;
  const auto bytes = [&](int64_t slices, size_t size) -> size_t {
    return slices > 1 ? size_t(slices * p.channels * (p.n_out * p.n_in + p.n_out)) * size : 0;
  };
  return choose(
      p,
      [&](auto kind, auto element, auto size) -> size_t {
        using Math = typename decltype(kind)::type;
        constexpr int kN = decltype(size)::value;
        const Slices s = backward_slices<Math, decltype(element), kN>(p);
        return bytes(s.slices, sizeof(acc_t<decltype(element)>));
      },
      [&](auto element) -> size_t {
        return bytes(slices_of_any(p).slices, sizeof(acc_t<decltype(element)>));
      });
}

const char* run(const LinearForward& p, void*, void* stream) {
  choose(
      p, [&](auto kind, auto element, auto size) { forward(kind, element, size, p, stream); },
      [&](auto element) { forward_any<decltype(element)>(p, stream); });
  return launch_error();
}

const char* run(const LinearBackward& p, void* workspace, void* stream) {
  choose(
      p,
      [&](auto kind, auto element, auto size) {
        backward(kind, element, size, p, workspace, stream);
      },
      [&](auto element) { backward_any<decltype(element)>(p, workspace, stream); });
  return launch_error();
}

}  // namespace cuda
}  // namespace cekernels
