package chart

import (
	"fmt"
	"slices"

	"gonum.org/v1/plot/font"
	"gonum.org/v1/plot/vg"

	"tapestry.dev/tapestry/bench"
)

// panel is one set of bars on one axis.
type panel struct {
	title, unit string
	bars        []bar
}

// bar is a line of the table with the name that its panel gives it, and the lines of text above it.
type bar struct {
	bench.Line
	name string
	text []string
}

// height returns a panel's height: that of its frame and of all its lines.
func (p panel) height() vg.Length { return frame + vg.Length(p.units())*lineHeight }

// units counts a panel's lines: one for each bar and each line of text.
func (p panel) units() int {
	n := 0
	for _, b := range p.bars {
		n += 1 + len(b.text)
	}
	return n
}

// panels returns one panel for each case that several subjects share. Cases of a single subject are worth seeing beside
// each other, so all of them with the same unit share one panel.
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
		b := bar{Line: l, name: name}
		b.text = wrap(b.words(), column, sans(textSize))
		panels[i].bars = append(panels[i].bars, b)
	}
	for _, l := range lines {
		if shared[l.Case] > 1 {
			add(l.Case, l.Subject, l)
		} else {
			add(l.Subject+", "+l.Unit, l.Case, l)
		}
	}
	return panels
}

// words returns what stands at a bar, the most important first: name and value, the figures beside it, the comparisons.
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

// wrap puts words into lines of at most the width room, as many words to a line as fit.
func wrap(words []string, room vg.Length, f font.Font) []string {
	face := font.DefaultCache.Lookup(f, f.Size)
	lines := []string{words[0]}
	for _, w := range words[1:] {
		last := &lines[len(lines)-1]
		if joined := *last + ", " + w; face.Width(joined+",") <= room {
			*last = joined
		} else {
			*last += ","
			lines = append(lines, w)
		}
	}
	return lines
}
