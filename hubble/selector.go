package hubble

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// labels are label selectors as kubectl has them: "a=b,c!=d,e,!f,g in (h,i),j notin (k)". A key may have a source
// before a colon, "k8s:a" or "reserved:world"; without one, any will do.
func labels(of func(*Flow) []string) func(given) (match, error) {
	return each(func(text string) (match, error) {
		var all []func(map[string][]string) bool
		for _, part := range split(text) {
			r, err := requirement(part)
			if err != nil {
				return nil, fmt.Errorf("selector %q: %w", text, err)
			}
			all = append(all, r)
		}
		return func(f *Flow) bool {
			has := map[string][]string{} // values by key, with and without its source
			for _, l := range of(f) {
				key, value, _ := strings.Cut(l, "=")
				has[key] = append(has[key], value)
				if _, bare, ok := strings.Cut(key, ":"); ok {
					has[bare] = append(has[bare], value)
				}
			}
			return !slices.ContainsFunc(all, func(r func(map[string][]string) bool) bool { return !r(has) })
		}, nil
	})
}

// split returns the requirements between commas, but for commas in parentheses.
func split(text string) []string {
	depth := 0
	return strings.FieldsFunc(text, func(r rune) bool {
		switch r {
		case '(':
			depth++
		case ')':
			depth--
		}
		return r == ',' && depth == 0
	})
}

var (
	key      = `(?:[\w-]+:)?[\w./-]+`
	exists   = regexp.MustCompile(`^(!?)\s*(` + key + `)$`)
	equal    = regexp.MustCompile(`^(` + key + `)\s*(==|=|!=)\s*([\w.-]*)$`)
	oneOf    = regexp.MustCompile(`^(` + key + `)\s+(in|notin)\s*\(([\w.,\s-]*)\)$`)
	mistaken = "%q is no requirement: expected KEY=VALUE, KEY!=VALUE, KEY, !KEY, KEY in (VALUE,...) or KEY notin (VALUE,...)"
)

// requirement reads one. A label that is not there is not equal to anything.
func requirement(text string) (func(map[string][]string) bool, error) {
	text = strings.TrimSpace(text)
	var name, how string
	var values []string
	if m := exists.FindStringSubmatch(text); m != nil {
		name, how = m[2], m[1]
	} else if m := equal.FindStringSubmatch(text); m != nil {
		name, how, values = m[1], m[2], []string{m[3]}
	} else if m := oneOf.FindStringSubmatch(text); m != nil {
		name, how = m[1], m[2]
		for _, v := range strings.Split(m[3], ",") {
			values = append(values, strings.TrimSpace(v))
		}
	} else {
		return nil, fmt.Errorf(mistaken, text)
	}
	name = strings.TrimPrefix(name, "any:")
	return func(has map[string][]string) bool {
		is, there := has[name]
		one := slices.ContainsFunc(is, func(v string) bool { return slices.Contains(values, v) })
		switch how {
		case "":
			return there
		case "!":
			return !there
		case "!=", "notin":
			return !one
		}
		return one
	}, nil
}
