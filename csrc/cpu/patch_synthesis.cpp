// Patch matching (Barnes et al. 2009) and voting (Wexler et al. 2007) in integers: results do not
// depend on the number of threads, the instruction set, or the order of sums.
// reference/patch_synthesis.py states what is computed.
#include <algorithm>
#include <vector>

#include "simd.h"

namespace cekernels {
namespace cpu {
namespace CEK_ISA {
namespace {

constexpr int64_t kColors = 3;
constexpr int64_t kLargest = 1020;  // of a colour
constexpr int32_t kWorst = 1 << 30;
constexpr int64_t kLanes = 16;
constexpr int64_t kGrain = 64;  // patches or pixels that one thread takes at a time

// 2^15 * 2^(-i / 16)
constexpr int32_t kPower[16] = {32768, 31379, 30048, 28774, 27554, 26386, 25268, 24196,
                                23170, 22188, 21247, 20347, 19484, 18658, 17867, 17109};
// One pixel of depth weighs as much as a factor of 1.6: 16 log2(1.6) / 3 = 3.62 per third.
constexpr int64_t kDepthNumerator = 29, kDepthDenominator = 8;
// 16 / (2 ln 2), for exp(-d / (2 s)) as a power of two in sixteenths.
constexpr int64_t kCostNumerator = 23, kCostDenominator = 2;

CEK_INLINE int64_t clamp(int64_t x, int64_t low, int64_t high) {
  return x < low ? low : x > high ? high : x;
}

template <class T>
CEK_INLINE T floor_divide(T a, T b) {  // b > 0
  return a / b - (a % b < 0);
}

// To the nearest integer, halves up.
template <class T>
CEK_INLINE T rounded_divide(T a, T b) {
  return floor_divide(2 * a + b, 2 * b);
}

// Philox-4x32-10, see reference/random.py.
struct Words {
  uint32_t word[4];
};
CEK_INLINE Words philox(uint32_t c0, uint32_t c1, uint32_t c2, uint64_t key) {
  uint32_t c3 = 0, k0 = uint32_t(key), k1 = uint32_t(key >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t(0xD2511F53u) * c0, b = uint64_t(0xCD9E8D57u) * c2;
    c0 = uint32_t(b >> 32) ^ c1 ^ k0, c1 = uint32_t(b);
    c2 = uint32_t(a >> 32) ^ c3 ^ k1, c3 = uint32_t(a);
    k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

// Sums of `image`'s first three channels over the patch at each centre that lies whole in it.
std::vector<int32_t> patch_sums(const int16_t* image, int64_t height, int64_t width,
                                int64_t channels, int64_t radius) {
  const int64_t side = 2 * radius + 1;
  std::vector<int32_t> sums(size_t(height * width * kColors)), columns(size_t(width * kColors));
  for (int64_t y = 0; y < height; ++y) {
    for (int64_t x = 0; x < width; ++x) {
      for (int64_t c = 0; c < kColors; ++c) {
        int32_t& column = columns[size_t(x * kColors + c)];
        column += image[(y * width + x) * channels + c];
        if (y >= side) column -= image[((y - side) * width + x) * channels + c];
      }
    }
    if (y < side - 1) continue;
    int32_t running[kColors] = {};
    for (int64_t x = 0; x < width; ++x) {
      for (int64_t c = 0; c < kColors; ++c) {
        running[c] += columns[size_t(x * kColors + c)];
        if (x >= side) running[c] -= columns[size_t((x - side) * kColors + c)];
        if (x >= side - 1)
          sums[size_t(((y - radius) * width + x - radius) * kColors + c)] = running[c];
      }
    }
  }
  return sums;
}

// The colour that is added to a source patch before it is compared and copied.
CEK_INLINE int64_t color_offset(int64_t target_sum, int64_t source_sum, int64_t area,
                                int64_t most) {
  // In 32 bits, where a division takes half the time: a sum is at most 15 * 15 * 32767.
  return clamp(rounded_divide(int32_t(target_sum - source_sum), int32_t(area)), -most, most);
}

// Squared differences of two rows of `blocks` blocks (kBlocks if not 0), where `lanes` is -1.
template <int kBlocks>
CEK_INLINE int32_t row_squares(const int16_t* a, const int16_t* b, const int16_t* lanes,
                               int64_t blocks) {
  int32_t sum = 0;
  for (int64_t i = 0; i < (kBlocks != 0 ? kBlocks : blocks) * kLanes; ++i) {
    const int16_t difference = int16_t((a[i] - b[i]) & lanes[i]);
    sum += int32_t(difference) * int32_t(difference);
  }
  return sum;
}

// kBlocks: the width of a patch's row in blocks; 0: known at run time only.
template <int kBlocks>
class Matcher {
 public:
  explicit Matcher(const PatchMatch& p)
      : p_(p),
        side_(2 * p.radius + 1),
        area_(side_ * side_),
        row_(side_ * p.channels),
        blocks_(divide_up(row_, kLanes)),
        // Rows of a patch are read in whole blocks.
        image_(size_t(p.height * p.width * p.channels + kLanes)),
        sums_(patch_sums(p.image, p.height, p.width, p.channels, p.radius)),
        guides_(patch_sums(p.guide, p.height, p.width, kColors, p.radius)),
        lanes_(size_t(blocks_ * kLanes)) {
    std::copy(p.image, p.image + p.height * p.width * p.channels, image_.begin());
    std::fill(lanes_.begin(), lanes_.begin() + row_, int16_t(-1));
    for (int64_t i = 0; i < p.height * p.width; ++i) {
      if (p.field[i] >= 0) targets_.push_back(int32_t(i));
    }
  }

  void run() {
    const int64_t size = p_.height * p_.width;
    std::copy(p_.field, p_.field + size, p_.matched);
    std::fill(p_.cost, p_.cost + size, 0);
    each_target([&](Patch& patch) {
      p_.cost[patch.position] = cost(patch, p_.field[patch.position], kWorst);
    });
    // A sweep reads what the one before left, so that the order of the patches does not matter.
    std::vector<int32_t> field(p_.field, p_.field + size), costs(p_.cost, p_.cost + size);
    for (int64_t s = 0; s < p_.sweeps; ++s) {
      each_target([&](Patch& patch) {
        patch.best = field[size_t(patch.position)];
        patch.cost = costs[size_t(patch.position)];
        propagate(patch, field.data());
        search(patch, p_.first_sweep + s);
        p_.matched[patch.position] = patch.best;
        p_.cost[patch.position] = patch.cost;
      });
      if (s + 1 == p_.sweeps) break;
      std::copy(p_.matched, p_.matched + size, field.begin());
      std::copy(p_.cost, p_.cost + size, costs.begin());
    }
  }

 private:
  struct Patch {
    int32_t position, best, cost;
    int16_t* pixels;  // its rows, each in whole blocks
  };

  template <class F>
  void each_target(const F& f) {
    parallel(int64_t(targets_.size()), kGrain, [&](int64_t begin, int64_t end) {
      std::vector<int16_t> pixels(size_t(side_ * blocks_ * kLanes));
      for (int64_t i = begin; i < end; ++i) {
        Patch patch{targets_[size_t(i)], -1, kWorst, pixels.data()};
        for (int64_t y = 0; y < side_; ++y) {
          std::copy_n(corner(patch.position) + y * p_.width * p_.channels, row_,
                      patch.pixels + y * blocks_ * kLanes);
        }
        f(patch);
      }
    });
  }

  CEK_INLINE const int16_t* corner(int64_t centre) const {
    return image_.data() + (centre - p_.radius * p_.width - p_.radius) * p_.channels;
  }

  // Anything of at least `limit` stands for a cost that is not below it.
  CEK_INLINE int32_t cost(const Patch& patch, int64_t source, int32_t limit) const {
    const int32_t* t = sums_.data() + int64_t(patch.position) * kColors;
    const int32_t* s = sums_.data() + source * kColors;
    const int32_t* g = guides_.data() + int64_t(patch.position) * kColors;
    int64_t sum = 0, apart = 0;
    for (int64_t c = 0; c < kColors; ++c) {
      const int64_t difference = t[c] - s[c];
      const int64_t offset = color_offset(t[c], s[c], area_, p_.max_offset);
      // The squares are summed without the offset: this corrects them. An eighth is its penalty.
      sum += offset * (offset * area_ - 2 * difference) + offset * offset * area_ / 8;
      const int64_t off_guide = s[c] + offset * area_ - g[c];
      apart += off_guide * off_guide;
    }
    sum += apart * p_.guide_weight / (16 * area_);
    const int16_t* from = corner(source);
    const int16_t* to = patch.pixels;
    for (int64_t y = 0; y < side_; ++y, from += p_.width * p_.channels, to += blocks_ * kLanes) {
      sum += row_squares<kBlocks>(to, from, lanes_.data(), blocks_);
      if (sum >= limit) return limit;  // it only grows from here
    }
    return int32_t(sum);
  }

  CEK_INLINE void consider(Patch& patch, int64_t source) const {
    const int32_t found = cost(patch, source, patch.cost);
    if (found < patch.cost) patch.cost = found, patch.best = int32_t(source);
  }

  CEK_INLINE void propagate(Patch& patch, const int32_t* field) const {
    const int64_t y = patch.position / p_.width, x = patch.position % p_.width;
    constexpr int64_t kSteps[4][2] = {{-1, 0}, {0, -1}, {0, 1}, {1, 0}};
    for (const auto& step : kSteps) {
      if (y + step[0] < 0 || y + step[0] >= p_.height || x + step[1] < 0 ||
          x + step[1] >= p_.width) {
        continue;
      }
      const int32_t neighbour = field[patch.position + step[0] * p_.width + step[1]];
      if (neighbour < 0) continue;
      const int64_t sy = neighbour / p_.width - step[0], sx = neighbour % p_.width - step[1];
      if (sy < 0 || sy >= p_.height || sx < 0 || sx >= p_.width) continue;
      if (p_.source[sy * p_.width + sx] != 0) consider(patch, sy * p_.width + sx);
    }
  }

  CEK_INLINE void search(Patch& patch, int64_t sweep) const {
    Words words{};
    int64_t reach = larger(p_.height, p_.width);
    for (uint32_t trial = 0; reach >= 1; ++trial, reach /= 2) {
      if (trial % 2 == 0) {
        words = philox(uint32_t(patch.position), uint32_t(sweep), trial / 2, p_.seed);
      }
      const uint32_t* word = words.word + trial % 2 * 2;
      const int64_t y = near(patch.best / p_.width, reach, p_.height, word[0]);
      const int64_t x = near(patch.best % p_.width, reach, p_.width, word[1]);
      if (p_.source[y * p_.width + x] != 0) consider(patch, y * p_.width + x);
    }
  }

  // A coordinate at most `reach` from `middle` where patches lie whole in the image.
  CEK_INLINE int64_t near(int64_t middle, int64_t reach, int64_t length, uint32_t word) const {
    const int64_t first = larger(p_.radius, middle - reach);
    const int64_t last = smaller(length - 1 - p_.radius, middle + reach);
    return first + int64_t((uint64_t(word) * uint64_t(last - first + 1)) >> 32);
  }

  const PatchMatch& p_;
  const int64_t side_, area_, row_, blocks_;
  std::vector<int16_t> image_;
  const std::vector<int32_t> sums_, guides_;
  std::vector<int16_t> lanes_;  // -1 in a row's pixels, 0 beyond
  std::vector<int32_t> targets_;
};

class Voter {
 public:
  explicit Voter(const PatchVote& p)
      : p_(p), side_(2 * p.radius + 1), offsets_(size_t(p.height * p.width * kColors)) {
    const std::vector<int32_t> sums = patch_sums(p.image, p.height, p.width, p.channels, p.radius);
    for (int64_t i = 0; i < p.height * p.width; ++i) {
      if (p.field[i] < 0) continue;
      for (int64_t c = 0; c < kColors; ++c) {
        offsets_[size_t(i * kColors + c)] = int16_t(color_offset(
            sums[size_t(i * kColors + c)], sums[size_t(int64_t(p.field[i]) * kColors + c)],
            side_ * side_, p.max_offset));
      }
    }
  }

  void run() {
    std::copy(p_.image, p_.image + p_.height * p_.width * p_.channels, p_.output);
    std::vector<int32_t> hole;
    for (int64_t i = 0; i < p_.height * p_.width; ++i) {
      if (p_.mask[i] != 0) hole.push_back(int32_t(i));
    }
    parallel(int64_t(hole.size()), kGrain, [&](int64_t begin, int64_t end) {
      std::vector<Ballot> ballots(static_cast<size_t>(side_ * side_));
      std::vector<int32_t> costs(static_cast<size_t>(side_ * side_));
      for (int64_t i = begin; i < end; ++i) vote(hole[size_t(i)], ballots.data(), costs.data());
    });
  }

 private:
  struct Ballot {
    int64_t centre, source, rank;  // source: of the pixel
  };

  void vote(int64_t position, Ballot* ballots, int32_t* costs) {
    const int64_t y = position / p_.width, x = position % p_.width;
    int64_t count = 0;
    int32_t least = kWorst;
    for (int64_t dy = -p_.radius; dy <= p_.radius; ++dy) {
      if (y + dy < 0 || y + dy >= p_.height) continue;
      for (int64_t dx = -p_.radius; dx <= p_.radius; ++dx) {
        if (x + dx < 0 || x + dx >= p_.width) continue;
        const int64_t step = dy * p_.width + dx, centre = position + step;
        if (p_.field[centre] < 0) continue;
        ballots[count] = {centre, p_.field[centre] - step, 0};
        costs[count++] = p_.cost[centre];
        least = std::min(least, p_.cost[centre]);
      }
    }
    if (count == 0) return;
    int64_t weakest = 0;
    if (!p_.best) {
      int32_t* quartile = costs + count * 3 / 4;
      std::nth_element(costs, quartile, costs + count);
      weakest = std::max(*quartile, 1);
    }
    int64_t highest = INT64_MAX;
    const Ballot* first = ballots;
    for (Ballot* b = ballots; b != ballots + count; ++b) {
      const int64_t deeper = p_.depth[b->centre] - p_.depth[position];
      const int64_t handicap = floor_divide(deeper * kDepthNumerator, kDepthDenominator);
      const int64_t cost = p_.cost[b->centre];
      if (p_.best) {
        b->rank = handicapped(cost, 2 * handicap);
      } else {
        b->rank = (cost - least) * kCostNumerator / (kCostDenominator * weakest) + handicap;
      }
      if (b->rank < highest) highest = b->rank, first = b;
    }
    int16_t* to = p_.output + position * p_.channels;
    if (p_.best) {
      for (int64_t c = 0; c < p_.channels; ++c) to[c] = int16_t(value(*first, c));
      return;
    }
    int64_t total = 0;
    int64_t sums[16] = {};
    for (const Ballot* b = ballots; b != ballots + count; ++b) {
      const int64_t rank = b->rank - highest;
      if (rank >= 256) continue;
      const int64_t weight = kPower[rank & 15] >> (rank >> 4);
      total += weight;
      for (int64_t c = 0; c < p_.channels; ++c) sums[c] += weight * value(*b, c);
    }
    for (int64_t c = 0; c < p_.channels; ++c) to[c] = int16_t(rounded_divide(sums[c], total));
  }

  // cost * 2^(sixteenths / 16), in fixed point.
  static int64_t handicapped(int64_t cost, int64_t sixteenths) {
    const int64_t octaves = -((-sixteenths) >> 4), fraction = (-sixteenths) & 15;
    const int64_t scaled = (cost + 1) * kPower[fraction];
    return octaves >= 0 ? scaled << octaves : scaled >> -octaves;
  }

  // What a patch proposes for one channel of the pixel.
  CEK_INLINE int64_t value(const Ballot& b, int64_t channel) const {
    const int64_t pixel = p_.image[b.source * p_.channels + channel];
    if (channel >= kColors) return pixel;
    const int64_t offset = offsets_[size_t(b.centre * kColors + channel)];
    return clamp(pixel + offset, 0, kLargest);
  }

  const PatchVote& p_;
  const int64_t side_;
  std::vector<int16_t> offsets_;  // (H, W, 3), of target patches
};

}  // namespace

void run(const PatchMatch& p) {
  switch (divide_up((2 * p.radius + 1) * p.channels, kLanes)) {
    case 2: return Matcher<2>(p).run();
    case 3: return Matcher<3>(p).run();
    default: return Matcher<0>(p).run();
  }
}
void run(const PatchVote& p) { Voter(p).run(); }

}  // namespace CEK_ISA
}  // namespace cpu
}  // namespace cekernels
