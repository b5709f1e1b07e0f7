package controller

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/visible"
)

const (
	// mostNodes is how many nodes a condition names, and mostText how many bytes it has of what each says.
	mostNodes = 5
	mostText  = 240
)

// reports returns what Nodes say in their annotation of objects of a kind, where it has that reason: one text of each
// Node, in the order of their names. A Node can write whatever it likes there, so each text has the name of the Node
// before it and is short, and of an object only those Nodes are heard by whose name concerns says that it is theirs.
func reports(nodes []*corev1.Node, kind, reason string, concerns func(of kube.Ref, node string) bool) map[kube.Ref][]string {
	said := map[kube.Ref][]string{}
	for _, n := range slices.SortedFunc(slices.Values(nodes), func(a, b *corev1.Node) int { return strings.Compare(a.Name, b.Name) }) {
		for ref, text := range reportsOf(n, kind, reason) {
			if concerns(ref, n.Name) {
				said[ref] = append(said[ref], text)
			}
		}
	}
	return said
}

func reportsOf(n *corev1.Node, kind, reason string) map[kube.Ref]string {
	var list []kube.Problem
	written := n.Annotations[kube.ProblemsAnnotation]
	if !strings.Contains(written, reason) || json.Unmarshal([]byte(written), &list) != nil {
		return nil // what is no list of problems says nothing
	}
	said := map[kube.Ref]string{}
	for _, p := range list {
		if p.Reason != reason || p.Object.Kind != kind || said[p.Object] != "" {
			continue
		}
		text := strings.TrimPrefix(p.Message, "on node "+n.Name+": ")
		if len(text) > mostText {
			text = strings.ToValidUTF8(text[:mostText], "") + "..."
		}
		said[p.Object] = visible.Text("node " + n.Name + ": " + text)
	}
	return said
}

// reportText returns what the first nodes say, and how many more there are.
func reportText(list []string) string {
	text := strings.Join(list[:min(len(list), mostNodes)], "; ")
	if more := len(list) - mostNodes; more > 0 {
		text += fmt.Sprintf("; and %d more nodes", more)
	}
	return text
}
