package controller

import (
	"fmt"
	"reflect"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"tapestry.dev/tapestry/visible"
)

// changed returns list with copies of the objects that change makes others of. Only those that may is true for are
// tried.
func changed[T any, P interface {
	*T
	DeepCopy() P
}](list []P, may func(P) bool, change func(P)) []P {
	out := slices.Clone(list)
	for i, obj := range list {
		if !may(obj) {
			continue
		}
		copied := obj.DeepCopy()
		if change(copied); !reflect.DeepEqual(copied, obj) {
			out[i] = copied
		}
	}
	return out
}

// every is the may of changed by which all objects are tried.
func every[P any](P) bool { return true }

// setCondition sets a condition. One whose status is the same as before keeps its time.
func setCondition(list *[]metav1.Condition, c metav1.Condition, generation int64, now metav1.Time) {
	old := meta.FindStatusCondition(*list, c.Type)
	c.ObservedGeneration, c.LastTransitionTime = generation, now
	if old != nil && old.Status == c.Status {
		c.LastTransitionTime = old.LastTransitionTime
	}
	if old == nil {
		*list = append(slices.Clip(*list), c)
		return
	}
	*old = c
}

func withoutCondition(list []metav1.Condition, kind string) []metav1.Condition {
	list = slices.DeleteFunc(list, func(c metav1.Condition) bool { return c.Type == kind })
	if len(list) == 0 {
		return nil
	}
	return list
}

// faultText returns what is wrong with an object as one line of 4,000 characters at most: an API server takes 32,768 in
// the message of a condition.
func faultText(faults []string) string {
	return fmt.Sprintf("%.4000s", visible.Text(strings.Join(faults, "; ")))
}
