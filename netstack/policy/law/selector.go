package law

import (
	"cmp"
	"slices"
)

// Label is a key with its value.
type Label struct{ Key, Value string }

// Labels are sorted by key, and have each key once.
type Labels []Label

// LabelsOf returns the labels of a map.
func LabelsOf(m map[string]string) Labels {
	if len(m) == 0 {
		return nil
	}
	list := make(Labels, 0, len(m))
	for k, v := range m {
		list = append(list, Label{k, v})
	}
	slices.SortFunc(list, func(a, b Label) int { return cmp.Compare(a.Key, b.Key) })
	return list
}

// get returns the value of a key. Labels are few, so looking at each is faster than a search.
func (l Labels) get(key string) (value string, there bool) {
	for i := range l {
		if l[i].Key == key {
			return l[i].Value, true
		}
	}
	return "", false
}

// Op is how a Requirement compares.
type Op uint8

// The operators. NotIn holds for labels without the key, too.
const (
	In Op = iota
	NotIn
	Exists
	DoesNotExist
)

// Requirement is about one key.
type Requirement struct {
	Key    string
	Op     Op
	Values []string // of In and NotIn
}

// Selector selects what meets all of its requirements: without any, everything.
type Selector []Requirement

// Matches reports whether s selects what has these labels.
func (s Selector) Matches(l Labels) bool {
	for i := range s {
		value, there := l.get(s[i].Key)
		var holds bool
		switch s[i].Op {
		case In:
			holds = there && slices.Contains(s[i].Values, value)
		case NotIn:
			holds = !there || !slices.Contains(s[i].Values, value)
		case Exists:
			holds = there
		case DoesNotExist:
			holds = !there
		}
		if !holds {
			return false
		}
	}
	return true
}

// NameLabel is the label that every namespace has, with its name.
const NameLabel = "kubernetes.io/metadata.name"
