// Package pins decides what other nodes' Node objects are believed.
//
// A kubelet writes its own Node's addresses, and an agent its own Node's key: so whoever takes over a node can
// claim what is another's, or nobody's. Three things stand against that.
//
//   - Rules. A range that no node can have is refused whoever claims it: one of Services, an API server's, a cloud's
//     metadata, a public address among private ones, or one outside of the ranges that the operator named.
//   - Conflicts. What two nodes claim stays with the one of which it was believed before, else with the older Node. A
//     claim that comes later, or from a name earlier in the alphabet, takes nothing away.
//   - Keys. A Node object's key is believed when it is seen first, for the life of the object (its UID). Another one is
//     believed while the admission policy is in force that lets nobody's token but that node's own agent change it; else
//     the first stays in use. An agent may delete no Node, so whoever deletes one is a person who may decide it, and the
//     object that comes after begins anew.
//
// What was believed is kept in a file. What is refused is left out of the Node, and told as a Problem of it.
package pins

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/kube/cluster/servers"
)

// Pins are what is believed of the nodes. Make them with Open.
type Pins struct {
	rules Rules
	file  string
	known map[string]pin // by the Node's name

	// The last answer, for the same question.
	asked    Question
	judged   []*corev1.Node
	problems []kube.Problem
	copies   map[*corev1.Node]edited
	read     map[*corev1.Node]*said
	unsaved  bool
}

// Guard is the name of the ValidatingAdmissionPolicyBinding that keeps agents from changing other Nodes than their
// own.
const Guard = "tapestry-agent-own-node"

// Question is what there is to judge.
type Question struct {
	// Nodes are sorted by name, and are not changed.
	Nodes []*corev1.Node
	// Guarded: nobody's token but a node's own agent can change its key.
	Guarded bool
	// Services are the ranges of Services, and Servers the addresses of API servers.
	Services []netip.Prefix
	Servers  []netip.Addr
}

func (q *Question) is(other *Question) bool {
	return kube.Same(q.Nodes, other.Nodes) && q.Guarded == other.Guarded &&
		slices.Equal(q.Services, other.Services) && slices.Equal(q.Servers, other.Servers)
}

// Open reads what was believed before out of a file, in which it is kept.
func Open(file string, r Rules) (*Pins, error) {
	p := &Pins{rules: r, file: file, known: map[string]pin{}}
	data, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return p, nil
	}
	if err == nil {
		err = json.Unmarshal(data, &p.known)
	}
	if err != nil { // to forget the keys in silence would be what an attacker wishes for
		return nil, fmt.Errorf("read the keys of other nodes: %w: repair or remove %s; removed, each node's key is believed as it is now", err, file)
	}
	return p, nil
}

// Judge gives the nodes with what is believed of them, and adds to problems where that is not what the API server
// says. Nodes of which all is believed are the same objects.
func (p *Pins) Judge(q Question, problems *[]kube.Problem) []*corev1.Node {
	if p.judged == nil || p.unsaved || !q.is(&p.asked) {
		p.readAll(q.Nodes)
		verdicts, next := judge(&q, &p.rules, p.known, p.read)
		p.asked, p.problems = q, nil
		p.judged = p.edit(q.Nodes, verdicts)
		if p.unsaved || !maps.Equal(next, p.known) {
			p.known = next
			p.save()
		}
	}
	*problems = append(*problems, p.problems...)
	return p.judged
}

// readAll brings read up to date.
func (p *Pins) readAll(nodes []*corev1.Node) {
	read := make(map[*corev1.Node]*said, len(nodes))
	for _, n := range nodes {
		if read[n] = p.read[n]; read[n] == nil {
			read[n] = readNode(n)
		}
	}
	p.read = read
}

// verdict is what is not believed of a Node.
type verdict struct {
	key      string // the one that is believed, "" for none
	cidrs    []int  // of spec.podCIDRs
	addrs    []int  // of status.addresses
	problems []kube.Problem
}

// judge decides what is believed, by what was believed before and what the nodes say. The verdicts are by node.
func judge(q *Question, r *Rules, known map[string]pin, read map[*corev1.Node]*said) (verdicts []verdict, next map[string]pin) {
	verdicts = make([]verdict, len(q.Nodes))
	at := make(map[*corev1.Node]int, len(q.Nodes))
	for i, n := range q.Nodes {
		at[n] = i
	}
	refuse := func(c *claim, message string) {
		v := &verdicts[at[c.node]]
		if c.pods {
			v.cidrs = append(v.cidrs, c.index)
		} else {
			v.addrs = append(v.addrs, c.index)
		}
		v.problems = append(v.problems, refusal(c.node, c.field(), message))
	}
	order := precedence{
		self:  r.Self,
		holds: func(c *claim) bool { was := known[c.node.Name]; return was.UID == c.node.UID && was.has(c) },
		hasKey: func(n *corev1.Node, key string) bool {
			was := known[n.Name]
			return was.UID == n.UID && keyID(was.Key) == keyID(key)
		},
	}
	for _, c := range decide(believable(q, r, read, refuse), order.claims) {
		refuse(c.lost, c.message())
	}
	keys := make([]string, len(q.Nodes))
	for i, n := range q.Nodes {
		keys[i] = keyOf(n, q.Guarded, known[n.Name], &verdicts[i])
	}
	lost := owners(q.Nodes, keys, &order)
	next = make(map[string]pin, len(q.Nodes))
	for i, n := range q.Nodes {
		v := &verdicts[i]
		if owner := lost[n]; owner != nil {
			v.problems = append(v.problems, refusal(n, keyField, "is the key of Node "+owner.Name+", which had it first, and is not believed here: every node needs a key of its own. "+
				"If both are one machine, delete the Node that is no more"))
			keys[i] = ""
		}
		v.key = keys[i]
		now := pin{UID: n.UID, Key: keys[i]}
		if was := known[n.Name]; now.Key == "" && was.UID == n.UID && q.Guarded && lost[n] == nil {
			now.Key = was.Key // it is what was let through last
		}
		now.Claims = read[n].without(v)
		if now.Key != "" || now.Claims != "" {
			next[n.Name] = now
		}
	}
	return verdicts, next
}

// believable gives the claims of all nodes that no rule forbids; the others are refused.
func believable(q *Question, r *Rules, read map[*corev1.Node]*said, refuse func(*claim, string)) []*claim {
	var own public
	for _, n := range q.Nodes {
		if n.Name == r.Self {
			own = publicOf(read[n].claims)
		}
	}
	list := make([]*claim, 0, 3*len(q.Nodes))
	for _, n := range q.Nodes {
		for _, c := range read[n].claims {
			why := ""
			if n.Name != r.Self {
				why = r.forbids(c, q, own)
			}
			if why != "" {
				refuse(c, why)
				continue
			}
			list = append(list, c)
		}
	}
	return list
}

const keyField = "metadata.annotations[" + kube.PublicKeyAnnotation + "]"

// keyOf gives the key that is believed to be n's own, as far as others do not have it.
func keyOf(n *corev1.Node, guarded bool, was pin, v *verdict) string {
	said := n.Annotations[kube.PublicKeyAnnotation]
	if guarded || was.UID != n.UID || was.Key == "" || was.Key == said {
		return said
	}
	what := fmt.Sprintf("the node's key has changed to %s", said)
	if said == "" {
		what = "the node's key has vanished"
	}
	v.problems = append(v.problems, refusal(n, keyField, what+", and nothing guards who may change it, so the one that was seen first stays in use: install the ValidatingAdmissionPolicy "+
		Guard+", or, if the change is meant, delete the Node object and restart its kubelet, which makes it anew"))
	return was.Key
}

func (p *Pins) save() {
	data, err := json.MarshalIndent(p.known, "", "\t")
	if err == nil {
		err = servers.WriteFile(p.file, data)
	}
	if p.unsaved = err != nil; p.unsaved {
		p.problems = append(p.problems, kube.Problem{
			Severity: kube.Warning, Object: kube.Ref{Kind: "Node"},
			Message: fmt.Sprintf("the keys of the nodes cannot be kept over a restart of the agent: %v: make room or give it rights there", err),
		})
	}
}
