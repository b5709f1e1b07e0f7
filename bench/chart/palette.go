package chart

import (
	"image/color"
	"math"
	"slices"
)

// Palette returns a function that gives every subject a colour of its own: cool colours for ours, warm ones for the
// others. A subject in neither list gets the first colour of ours. The same lists give the same colours.
func Palette(ours, others []string) func(subject string) color.Color {
	return func(subject string) color.Color {
		if i := slices.Index(others, subject); i >= 0 {
			return hsl(between(5, 65, i), 0.62, []float64{0.62, 0.72}[i%2])
		}
		return hsl(between(165, 280, max(0, slices.Index(ours, subject))), 0.5, []float64{0.42, 0.55}[max(0, slices.Index(ours, subject))%2])
	}
}

// between returns hue number i. Each hue lies in the widest gap between the earlier ones, by the golden ratio.
func between(low, high float64, i int) float64 {
	const golden = 0.6180339887
	_, part := math.Modf(0.35 + float64(i)*golden)
	return low + (high-low)*part
}

// hsl converts a colour; h is in degrees, s and l are 0 to 1.
func hsl(h, s, l float64) color.Color {
	channel := func(n float64) uint8 {
		k := math.Mod(n+h/30, 12)
		return uint8(math.Round(255 * (l - s*min(l, 1-l)*max(-1, min(k-3, 9-k, 1)))))
	}
	return color.RGBA{R: channel(0), G: channel(8), B: channel(4), A: 255}
}
