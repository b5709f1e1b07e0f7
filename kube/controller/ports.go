package controller

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/visible"
)

// PortsServedCondition of a Service is False when nodes cannot listen on a port of it, and True when they could not and
// can again.
const PortsServedCondition = "tapestry.dev/PortsServed"

const (
	// mostNodes is how many nodes a condition names, and mostText how many bytes it has of what each says.
	mostNodes = 5
	mostText  = 240
)

// PortsServed sets the condition PortsServedCondition of Services, by what the Nodes say of their own hosts in their
// annotation. It returns a new snapshot with changed copies of the Services that have another condition. A Node can
// write whatever it likes there, so each sentence has the name of the Node before it, is short, and is one among few.
func PortsServed(objs kube.Objects, now time.Time) kube.Objects {
	said := map[kube.Ref][]string{}
	for _, n := range slices.SortedFunc(slices.Values(objs.Nodes), func(a, b *corev1.Node) int { return strings.Compare(a.Name, b.Name) }) {
		for ref, text := range unservedBy(n) {
			said[ref] = append(said[ref], text)
		}
	}
	told := func(svc *corev1.Service) bool {
		return meta.FindStatusCondition(svc.Status.Conditions, PortsServedCondition) != nil
	}
	objs.Services = changed(objs.Services, func(svc *corev1.Service) bool { return len(said[kube.RefOf(svc)]) > 0 || told(svc) }, func(svc *corev1.Service) {
		c := metav1.Condition{Type: PortsServedCondition, Status: metav1.ConditionTrue, Reason: "Served", Message: "every node listens on its ports"}
		if list := said[kube.RefOf(svc)]; len(list) > 0 {
			c.Status, c.Reason, c.Message = metav1.ConditionFalse, kube.PortNotServed, unservedText(list)
		}
		setCondition(&svc.Status.Conditions, c, svc.Generation, metav1.NewTime(now.Truncate(time.Second)))
	})
	return objs
}

// unservedBy returns what a Node says of Services whose ports it cannot listen on, a text each.
func unservedBy(n *corev1.Node) map[kube.Ref]string {
	var list []kube.Problem
	if n.Annotations[kube.ProblemsAnnotation] == "" || json.Unmarshal([]byte(n.Annotations[kube.ProblemsAnnotation]), &list) != nil {
		return nil // what is no list of problems says nothing of Services
	}
	said := map[kube.Ref]string{}
	for _, p := range list {
		if p.Reason != kube.PortNotServed || p.Object.Kind != "Service" || said[p.Object] != "" {
			continue
		}
		text := p.Message
		if len(text) > mostText {
			text = strings.ToValidUTF8(text[:mostText], "") + "..."
		}
		said[p.Object] = visible.Text("node " + n.Name + ": " + text)
	}
	return said
}

// unservedText returns what the first nodes say, and how many more there are.
func unservedText(list []string) string {
	text := strings.Join(list[:min(len(list), mostNodes)], "; ")
	if more := len(list) - mostNodes; more > 0 {
		text += fmt.Sprintf("; and %d more nodes", more)
	}
	return text
}
