package chart

import (
	"fmt"
	"slices"
	"strings"

	"gonum.org/v1/plot/font"
	"gonum.org/v1/plot/vg"

	"tapestry.dev/tapestry/bench"
)

// panel is one set of bars on one axis.
type panel struct {
	title, unit string
	bars        []bar
}

// bar is a line of the table, by the name that its panel calls it.
type bar struct {
	bench.Line
	name string
}

// panels has one for each case that several subjects share. Cases of a single subject say something beside each other, so
// those of one unit are a panel.
func (c Chart) panels() []panel {
	lines := bench.Lines(c.Rows)
	shared := map[string]int{}
	for _, l := range lines {
		shared[l.Case]++
	}
	var panels []panel
	add := func(title, name string, l bench.Line) {
		i := slices.IndexFunc(panels, func(p panel) bool { return p.title == title && p.unit == l.Unit })
		if i < 0 {
			i = len(panels)
			panels = append(panels, panel{title: title, unit: l.Unit})
		}
		panels[i].bars = append(panels[i].bars, bar{l, name})
	}
	for _, l := range lines {
		if shared[l.Case] > 1 {
			add(l.Case, l.Subject, l)
		} else {
			add(l.Subject, l.Case, l)
		}
	}
	return panels
}

// words are what stands at a bar, the most important first: name and value, what stands beside it, comparisons.
func (b bar) words() []string {
	words := []string{b.name + "  " + bench.Short(b.Value)}
	if r, ok := b.Beside[bench.P99]; ok {
		words = append(words, "p99 "+bench.Short(r.Value))
	}
	if r, ok := b.Beside[bench.CostName]; ok {
		words = append(words, bench.Short(r.Value)+" "+r.Unit+" cpu")
	}
	if r, ok := b.Beside[bench.LossName]; ok {
		words = append(words, bench.Short(r.Value)+" "+r.Unit+" lost")
	}
	for _, r := range b.Against {
		words = append(words, fmt.Sprintf("%.2f of %s", r.Ratio, r.Baseline))
	}
	return words
}

// fit joins as many words as there is room for; the table has all.
func fit(words []string, room vg.Length, f font.Font) string {
	face := font.DefaultCache.Lookup(f, f.Size)
	for n := len(words); n > 1; n-- {
		joined := strings.Join(words[:n], ", ")
		if n < len(words) {
			joined += " …"
		}
		if face.Width(joined) <= room {
			return joined
		}
	}
	return words[0]
}
