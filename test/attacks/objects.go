package main

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"math/big"
	"strings"
	"time"

	"tapestry.dev/tapestry/test/lab"
)

// The cast. The attacked node has the first address of the lab, and its pods the first range.
const (
	victimNode     = "node-1"
	nodeAddr       = "172.31.0.11"
	hostTAP        = "10.244.1.2"
	visitor        = "203.0.113.10" // an address of the client outside; attackers have its other one
	nodePort       = "30081"
	ingressPort    = "80"
	ingressTLSPort = "443"
	plainPort      = "8180" // of a server on the attacked node, beside the agent
	victimHost     = "victim.example"
	attackerHost   = "attacker.example"
	roundHost      = "round.example"
	nobody         = "10.244.200.1:9000" // in the pods' range, and no node's
	manyAddrs      = "198.19.0.0/16"     // of attackers outside
)

// marker shows that the objects before it are in force, being of the same file.
const (
	markerName = "default/marker"
	marker     = "---\n{apiVersion: v1, kind: Service, metadata: {name: marker}, spec: {clusterIP: 10.96.0.210, ports: [{port: 80}]}}\n"
)

// attack is one row of the table.
type attack struct {
	name, what string
	objects    func() string // what a tenant adds; nil for nothing
	from       lab.Target
	program    []string // nil for none
	tls        bool     // the well-behaved client uses HTTPS
	// plain says that the program attacks a plain server as well, from outside. Its first argument is the port or the
	// address that it attacks.
	plain bool
}

// attacks is the table, in its order.
var attacks = []attack{
	{name: "none", what: "nothing happens"},
	{name: "self-nodeport-udp", what: "one datagram to a NodePort whose endpoint is that NodePort", objects: tail, from: lab.Outside(), program: []string{"once", "udp", nodeAddr + ":30181"}},
	{name: "self-nodeport-tcp", what: "one connection to it", objects: tail, from: lab.Outside(), program: []string{"once", "tcp", nodeAddr + ":30181"}},
	{name: "self-ingress", what: "one request to an Ingress that leads to Ingress", objects: round, from: lab.Outside(), program: []string{"once", "http", nodeAddr + ":80"}},
	{name: "many-ports", what: "a Service of 3,000 ports and 1,000 addresses", objects: manyPorts},
	{name: "many-paths", what: "an Ingress of 5,000 paths to 5,000 addresses", objects: manyPaths},
	{name: "many-secrets", what: "an Ingress that names 5,000 Secrets", objects: manySecrets},
	{name: "handshakes", what: "16 clients that only shake hands, RSA-4096", objects: heavyKey, from: lab.Outside(), program: []string{"handshakes"}, tls: true},
	{name: "removed-range", what: "one datagram of a pod to a removed node's range", from: lab.Pod("attacker"), program: []string{"once", "udp", nobody}},
	{name: "made-you-reset", what: "MadeYouReset, 2 connections", from: lab.Outside(), program: []string{"made-you-reset", ingressPort}, plain: true},
	{name: "resets", what: "HTTP/1.1 requests that are reset at once", from: lab.Outside(), program: []string{"resets", ingressPort}, plain: true},
	{name: "resets-nodeport", what: "the same at a NodePort", from: lab.Outside(), program: []string{"resets", nodePort}, plain: true},
	{name: "large-headers", what: "headers of 9.5 MB, 100 clients that read nothing", from: lab.Outside(), program: []string{"unread"}},
	{name: "window-0", what: "2,500 responses of 16 MiB with a window of 0", from: lab.Outside(), program: []string{"window-0"}},
	{name: "idle", what: "20,200 idle connections", from: lab.Outside(), program: []string{"idle", ingressPort, "20200"}, plain: true},
	{name: "slow-bodies", what: "8,000 bodies at a byte a second", from: lab.Outside(), program: []string{"slow-bodies", ingressPort}, plain: true},
	{name: "syns-pod", what: "a pod begins connections to a ClusterIP without end", from: lab.Pod("attacker"), program: []string{"syns", floodedIP}, plain: true},
	{name: "syns-pod-outside", what: "a pod begins connections to the outside", from: lab.Pod("attacker"), program: []string{"syns", outsideHost}, plain: true},
	{name: "datagrams-pod", what: "a pod sends datagrams to ever new ports outside", from: lab.Pod("attacker"), program: []string{"datagrams", outsideHost, "spread"}, plain: true},
	{name: "syns-nodeport", what: "a client outside begins connections to a NodePort", from: lab.Outside(), program: []string{"syns", nodeAddr + ":" + floodedPort}, plain: true},
	{name: "syns-pool", what: "a client outside begins connections to a load balancer's address that is routed to the node, from ever new ports", from: lab.Outside(), program: []string{"syns", poolIP}, plain: true},
	{name: "syns-pool-many", what: "the same from 65,536 addresses", from: lab.Outside(), program: []string{"from-many", poolIP, "syn", manyAddrs}, plain: true},
	{name: "datagrams-pool", what: "a client outside sends datagrams from ever new ports to that address", from: lab.Outside(), program: []string{"datagrams", poolIP}, plain: true},
	{name: "datagrams-pool-many", what: "the same from 65,536 addresses", from: lab.Outside(), program: []string{"from-many", poolIP, "datagram", manyAddrs}, plain: true},
	{name: "datagrams-nodeport", what: "a client outside sends datagrams from ever new ports to a NodePort", from: lab.Outside(), program: []string{"datagrams", nodeAddr + ":" + floodedPort}, plain: true},
}

// baseYAML returns the lab: a well-behaved server on the other node, behind an Ingress and a NodePort, and a tenant's.
func baseYAML(exe string) (string, error) {
	secret, err := lab.TLSSecret("victim", victimHost)
	if err != nil {
		return "", err
	}
	pod := func(name, node, more string) string {
		return fmt.Sprintf(`---
apiVersion: v1
kind: Pod
metadata: {name: %s, labels: {app: %s}, annotations: {tapestry.dev/probe-period: 200ms}}
spec:
  nodeName: %s
  containers: [{name: server, ports: [{containerPort: 8080}]%s, readinessProbe: {tcpSocket: {port: 8080}, timeoutSeconds: 30}}]
`, name, name, node, more)
	}
	return `{apiVersion: v1, kind: Node, metadata: {name: node-1}}
---
{apiVersion: v1, kind: Node, metadata: {name: node-2}}
` + pod("victim", "node-2", "") + pod("attacker", "node-1", fmt.Sprintf(", command: [%q, run, backend, \"8080\", 1h]", exe)) +
		fmt.Sprintf(`---
{apiVersion: v1, kind: Service, metadata: {name: victim}, spec: {type: NodePort, selector: {app: victim}, ports: [{port: 80, targetPort: 8080, nodePort: %s}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: attacker}, spec: {selector: {app: attacker}, ports: [{port: 80, targetPort: 8080}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: flooded}, status: {loadBalancer: {ingress: [{ip: 198.18.7.1}]}}, spec: {clusterIP: 10.96.0.205, type: LoadBalancer, selector: {app: attacker},
ports: [{name: t, port: 80, targetPort: 8080, nodePort: %[2]s}, {name: u, protocol: UDP, port: 80, targetPort: 8080, nodePort: %[2]s}]}}
`, nodePort, floodedPort) + ingress("victim", victimHost, "victim", "victim") + ingress("attacker", attackerHost, "attacker", "") + "---\n" + secret, nil
}

func ingress(name, host, service, secret string) string {
	tls := ""
	if secret != "" {
		tls = fmt.Sprintf("tls: [{hosts: [%s], secretName: %s}], ", host, secret)
	}
	return fmt.Sprintf(`---
{apiVersion: networking.k8s.io/v1, kind: Ingress, metadata: {name: %s}, spec: {%srules: [{host: %s, http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: %s, port: {number: 80}}}}]}}]}}
`, name, tls, host, service)
}

// slice returns an EndpointSlice of addresses and ports, as lists in YAML.
func slice(name, service string, addrs []string, ports string) string {
	return fmt.Sprintf(`---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: %s, labels: {kubernetes.io/service-name: %s}}
addressType: IPv4
endpoints: [{addresses: [%s]}]
ports: [%s]
`, name, service, strings.Join(addrs, "]}, {addresses: ["), ports)
}

func tail() string {
	const ports = "{name: t, port: 30181}, {name: u, port: 30181, protocol: UDP}"
	return `---
{apiVersion: v1, kind: Service, metadata: {name: tail}, spec: {clusterIP: 10.96.0.201, type: NodePort, ports: [{name: t, port: 80, nodePort: 30181}, {name: u, port: 80, protocol: UDP, nodePort: 30181}]}}
` + slice("tail-1", "tail", []string{hostTAP}, ports)
}

func round() string {
	return "---\n{apiVersion: v1, kind: Service, metadata: {name: round}, spec: {clusterIP: 10.96.0.202, ports: [{port: 80}]}}\n" + slice("round-1", "round", []string{nodeAddr}, "{port: 80}") +
		ingress("round", roundHost, "round", "")
}

// addrs returns addresses outside of the cluster.
func addrs(from, count int) (list []string) {
	for i := from; i < from+count; i++ {
		list = append(list, fmt.Sprintf("198.18.%d.%d", i/250, 1+i%250))
	}
	return list
}

func manyPorts() string {
	var service, ports []string
	for i := range 3000 {
		service = append(service, fmt.Sprintf("{name: p%d, port: %d}", i, 1000+i))
		ports = append(ports, fmt.Sprintf("{name: p%d, port: %d}", i, 1000+i))
	}
	return fmt.Sprintf("---\n{apiVersion: v1, kind: Service, metadata: {name: many}, spec: {clusterIP: 10.96.0.203, ports: [%s]}}\n", strings.Join(service, ", ")) +
		slice("many-1", "many", addrs(0, 1000), strings.Join(ports, ", "))
}

func manyPaths() string {
	var b strings.Builder
	b.WriteString("---\n{apiVersion: v1, kind: Service, metadata: {name: many}, spec: {clusterIP: 10.96.0.204, ports: [{port: 80}]}}\n")
	for i := range 5 {
		b.WriteString(slice(fmt.Sprintf("many-%d", i), "many", addrs(1000*i, 1000), "{port: 80}"))
	}
	b.WriteString("---\n{apiVersion: networking.k8s.io/v1, kind: Ingress, metadata: {name: many}, spec: {rules: [{host: many.example, http: {paths: [")
	for i := range 5000 {
		fmt.Fprintf(&b, "{path: /%d, pathType: Prefix, backend: {service: {name: many, port: {number: 80}}}}, ", i)
	}
	b.WriteString("]}}]}}\n")
	return b.String()
}

func manySecrets() string {
	var tls []string
	for i := range 5000 {
		tls = append(tls, fmt.Sprintf("{hosts: [h%d.example], secretName: s%d}", i, i))
	}
	return fmt.Sprintf("---\n{apiVersion: networking.k8s.io/v1, kind: Ingress, metadata: {name: many}, spec: {tls: [%s], defaultBackend: {service: {name: attacker, port: {number: 80}}}}}\n",
		strings.Join(tls, ", "))
}

// heavyKey returns a certificate with the largest key that is taken.
func heavyKey() string {
	key, err := rsa.GenerateKey(rand.Reader, 4096)
	fail(err)
	template := x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: attackerHost}, DNSNames: []string{attackerHost},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, &template, &template, &key.PublicKey, key)
	fail(err)
	text := func(kind string, der []byte) string {
		return base64.StdEncoding.EncodeToString(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
	}
	return fmt.Sprintf("---\n{apiVersion: v1, kind: Secret, metadata: {name: heavy}, type: kubernetes.io/tls, data: {tls.crt: %s, tls.key: %s}}\n",
		text("CERTIFICATE", der), text("RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(key))) + ingress("heavy", attackerHost, "attacker", "heavy")
}
