package manifests

import (
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"tapestry.dev/tapestry/kube"
)

// manyChanges is the number of changed objects above which it is as cheap to join all files anew.
const manyChanges = 256

// joined keeps the joined objects of several files from one snapshot to the next, so that the cost of changing one
// file among thousands depends only on that file. The zero value has joined nothing yet.
type joined struct {
	last    kube.Objects
	good    bool // last is what the files held before old was replaced by now
	old     kube.Builder
	now     kube.Builder
	waiting int // objects in old and now
	layers  layers
}

// replace notes that the objects of a file were replaced by others.
func (j *joined) replace(old, now kube.Objects) {
	j.waiting += old.Len() + now.Len()
	if j.waiting > manyChanges {
		j.good = false
	}
	if j.good {
		add(&j.old, &old)
		add(&j.now, &now)
	}
}

func add(to *kube.Builder, objs *kube.Objects) {
	for obj := range objs.All() {
		to.Add(obj, objs.Origin[kube.RefOf(obj)])
	}
}

// objects returns the snapshot. It calls parts for the objects of all files only when it has to join them anew.
func (j *joined) objects(parts func() []kube.Objects) (kube.Objects, error) {
	var err error
	if j.good {
		old, now := j.old.Objects(), j.now.Objects()
		j.last, j.good = j.last.Replace(&old, &now)
	}
	if !j.good {
		j.last, err = kube.Merge(parts()...)
		j.good = err == nil
	}
	j.old, j.now, j.waiting = kube.Builder{}, kube.Builder{}, 0
	return j.last, err
}

// layers remembers Nodes with published ones merged into them, so that unchanged Nodes keep their pointers.
type layers struct {
	laid map[*corev1.Node]layer
	last []*corev1.Node
}

type layer struct{ published, result *corev1.Node }

// over merges each published Node into the Node of the same name: annotations, conditions by type, and addresses when
// the Node was written without any.
func (l *layers) over(objs kube.Objects, published []*corev1.Node) kube.Objects {
	byName := map[string][]*corev1.Node{}
	for _, p := range published {
		byName[p.Name] = append(byName[p.Name], p)
	}
	laid := make(map[*corev1.Node]layer, len(byName))
	nodes := slices.Clone(objs.Nodes)
	for i, n := range objs.Nodes {
		for _, p := range byName[n.Name] {
			below := nodes[i]
			if known, ok := l.laid[below]; ok && known.published == p {
				nodes[i] = known.result
			} else {
				nodes[i] = overlayNode(below, p)
			}
			laid[below] = layer{p, nodes[i]}
		}
	}
	l.laid = laid
	if !slices.Equal(nodes, l.last) {
		l.last = nodes
	}
	objs.Nodes = l.last
	return objs
}

func overlayNode(n, p *corev1.Node) *corev1.Node {
	n = n.DeepCopy()
	if n.Annotations == nil {
		n.Annotations = map[string]string{}
	}
	maps.Copy(n.Annotations, p.Annotations)
	for _, c := range p.Status.Conditions {
		i := slices.IndexFunc(n.Status.Conditions, func(known corev1.NodeCondition) bool { return known.Type == c.Type })
		if i < 0 {
			n.Status.Conditions = append(n.Status.Conditions, c)
		} else {
			n.Status.Conditions[i] = c
		}
	}
	if len(n.Status.Addresses) == 0 {
		n.Status.Addresses = slices.Clone(p.Status.Addresses)
	}
	return n
}
