package translate

import (
	"cmp"
	"crypto/tls"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"

	"tapestry.dev/tapestry/ingress"
	"tapestry.dev/tapestry/kube"
)

// certificateStage turns the Secrets that Ingresses name into certificates. It parses each key pair once.
type certificateStage struct {
	used   memo[certificateKey, []*corev1.Secret]
	parsed memo[*corev1.Secret, *tls.Certificate]
	joined memo[certificateKey, []ingress.Certificate]
}

type certificateKey struct {
	rules    list[*rules]
	secrets  list[*corev1.Secret]
	withheld list[kube.Ref]
	awaited  list[kube.Ref]
}

// tlsEntry is one entry of spec.tls.
type tlsEntry struct {
	field  string
	secret objectName
	hosts  []tlsHost // none means all hosts of the certificate
}

type tlsHost struct{ field, name string }

func (r *rules) parseTLS(obj *networkingv1.Ingress, i int, say *kube.Report) {
	entry, field := &obj.Spec.TLS[i], index("spec.tls", i)
	if entry.SecretName == "" {
		say.Warnf(r.ref, field+".secretName", "is missing, so that these hosts have no certificate: name a Secret of type kubernetes.io/tls")
		return
	}
	t := tlsEntry{field: field, secret: objectName{obj.Namespace, entry.SecretName}}
	for j, host := range entry.Hosts {
		field := index(field+".hosts", j)
		if host = strings.ToLower(host); !validHost(host) || host == "" {
			say.Errorf(r.ref, field, "%q is not a host name: expected one like www.example.com or *.example.com", host)
			continue
		}
		t.hosts = append(t.hosts, tlsHost{field, host})
	}
	if len(t.hosts) > 0 || len(entry.Hosts) == 0 {
		r.tls = append(r.tls, t)
	}
}

func (s *certificateStage) of(all []*rules, objs *kube.Objects, say *kube.Report) []ingress.Certificate {
	used := s.used.once(certificateKey{rules: identity(all), secrets: identity(objs.Secrets)}, say, func(*kube.Report) []*corev1.Secret {
		return usedSecrets(all, objs.Secrets)
	})
	pairs := s.parsed.each(used, compareNames, nil, say, keyPair)
	key := certificateKey{identity(all), identity(used), identity(objs.Withheld), identity(objs.Awaited)}
	return s.joined.once(key, say, func(say *kube.Report) []ingress.Certificate {
		known := knownPairs{secrets: used, pairs: pairs, withheld: setOf(objs.Withheld), awaited: setOf(objs.Awaited), names: map[*tls.Certificate]certNames{}}
		return certificates(withSecrets(all, say), known, say)
	})
}

// usedSecrets returns the Secrets that Ingresses name, in the order of secrets, which must be sorted.
func usedSecrets(all []*rules, secrets []*corev1.Secret) []*corev1.Secret {
	var used []*corev1.Secret
	for _, r := range all {
		for i := range r.tls {
			if secret := find(secrets, r.tls[i].secret); secret != nil {
				used = append(used, secret)
			}
		}
	}
	slices.SortFunc(used, compareNames)
	return slices.Compact(used)
}

func setOf(list []kube.Ref) map[kube.Ref]bool {
	set := make(map[kube.Ref]bool, len(list))
	for _, ref := range list {
		set[ref] = true
	}
	return set
}

// knownPairs holds the used Secrets and their key pairs, by the same index; a pair is nil when it cannot be used.
type knownPairs struct {
	secrets  []*corev1.Secret
	pairs    []*tls.Certificate
	withheld map[kube.Ref]bool // those that the agent may not read, among others
	awaited  map[kube.Ref]bool // those of which nothing is known yet, among others
	names    map[*tls.Certificate]certNames
}

// of returns the key pair of a Secret, or says what is wrong when the Secret does not exist or may not be read.
func (p *knownPairs) of(name objectName) (pair *tls.Certificate, wrong string) {
	i, found := slices.BinarySearchFunc(p.secrets, name, func(s *corev1.Secret, n objectName) int { return nameOf(s).compare(n) })
	switch ref := name.secret(); {
	case found:
		return p.pairs[i], ""
	case p.awaited[ref]:
		return nil, ""
	case p.withheld[ref]:
		return nil, fmt.Sprintf("the agents may not read Secret %s, so that these hosts have no certificate: let them get, list and watch it, "+
			"by a Role in namespace %s, as the chart makes it for namespaces in ingress.secretNamespaces", name, name.namespace)
	}
	return nil, fmt.Sprintf("there is no Secret %s: create it, with tls.crt and tls.key", name)
}

// certificates returns the certificates that Ingresses name, those of the oldest Ingress first. Of several
// certificates for one host the first is served, so that nobody takes a host from others. A later one is there for
// when the first cannot be used.
//
// all has the older Ingresses first.
func certificates(all []*rules, known knownPairs, say *kube.Report) []ingress.Certificate {
	var list []ingress.Certificate
	first := map[string]*tlsOwner{} // by host
	seen := map[tlsName]bool{}
	for _, r := range all {
		whole := map[objectName]bool{} // the Secrets whose entry named no hosts
		for i := range r.tls {
			entry := &r.tls[i]
			if len(entry.hosts) == 0 {
				if whole[entry.secret] {
					continue
				}
				whole[entry.secret] = true
			}
			pair, wrong := known.of(entry.secret)
			if wrong != "" {
				say.Errorf(r.ref, entry.field+".secretName", "%s", wrong)
			}
			if pair == nil {
				continue
			}
			cert := ingress.Certificate{Name: entry.secret.String(), Cert: *pair}
			hosts, names, refused, taken := hostsOf(entry, pair), known.namesOf(pair), told(0), told(0)
			for _, h := range hosts {
				if !names.has(h.name) && refused.more() {
					say.Warnf(r.ref, h.field, "the certificate in Secret %s is not for %s, so that clients will refuse it: it is for %s",
						entry.secret, h.name, names)
				}
				if owner := first[h.name]; owner == nil {
					first[h.name] = &tlsOwner{r.ref, entry.secret}
				} else if owner.secret.namespace != entry.secret.namespace && taken.more() {
					say.Warnf(r.ref, h.field, "%s has a certificate by %s already, which is older or of the lesser name, and clients get that while it can be used: leave the host to it",
						h.name, owner.ingress)
				}
				if name := (tlsName{entry.secret, h.name}); !seen[name] {
					seen[name] = true
					cert.Hosts = append(cert.Hosts, h.name)
				}
			}
			if n := refused.untold(); n > 0 {
				say.Warnf(r.ref, entry.field, "the certificate in Secret %s is not for %d more of its hosts", entry.secret, n)
			}
			if n := taken.untold(); n > 0 {
				say.Warnf(r.ref, entry.field, "%d more of its hosts have certificates by other Ingresses already", n)
			}
			if len(hosts) == 0 { // it would be served for every host without a certificate
				say.Warnf(r.ref, entry.field, "the certificate in Secret %s is for no host, and hosts is missing, so no client gets it: write hosts", entry.secret)
			}
			if len(cert.Hosts) > 0 {
				list = append(list, cert)
			}
		}
	}
	return list
}

// tlsOwner says which Ingress first named a certificate for a host.
type tlsOwner struct {
	ingress kube.Ref
	secret  objectName
}

// tlsName is a host for which the certificate of a Secret is served.
type tlsName struct {
	secret objectName
	host   string
}

// hostsOf returns the hosts of an entry, or those of its certificate when the entry names none.
func hostsOf(entry *tlsEntry, cert *tls.Certificate) []tlsHost {
	if len(entry.hosts) > 0 {
		return entry.hosts
	}
	var hosts []tlsHost
	for i, name := range cert.Leaf.DNSNames {
		if name = strings.ToLower(name); validHost(name) && name != "" {
			hosts = append(hosts, tlsHost{index(entry.field+".hosts", i), name})
		}
	}
	return hosts
}

// told counts problems of one sort of one tls entry. The first mostTold are reported one by one: their user decides how
// many there are.
type told int

// more counts one, and reports whether it is to be reported.
func (t *told) more() bool { *t++; return *t <= mostTold }

// untold returns how many were counted and not reported.
func (t told) untold() int { return max(0, int(t)-mostTold) }

// certNames are the names of a certificate, in lower case. A user decides how many there are, and how many hosts are
// looked up among them.
type certNames struct {
	all   map[string]bool
	shown string // the first of them, for messages
}

// namesOf returns the names of a certificate. They are sorted out once.
func (p *knownPairs) namesOf(cert *tls.Certificate) certNames {
	n, ok := p.names[cert]
	if !ok {
		list := cert.Leaf.DNSNames
		n.all = make(map[string]bool, len(list))
		for _, name := range list {
			n.all[strings.ToLower(name)] = true
		}
		n.shown = cmp.Or(strings.Join(list[:min(len(list), mostTold)], ", "), "no host")
		if more := len(list) - mostTold; more > 0 {
			n.shown += fmt.Sprintf(" and %d more", more)
		}
		p.names[cert] = n
	}
	return n
}

// has reports whether clients of that host accept the certificate: it has the host's name, or a wildcard in the place
// of the first label (RFC 6125 section 6.4.3). A host with a wildcard needs the same wildcard.
func (n certNames) has(host string) bool {
	_, domain, _ := strings.Cut(host, ".")
	return n.all[host] || domain != "" && n.all["*."+domain]
}

func (n certNames) String() string { return n.shown }

// keyPair parses a TLS Secret. It returns nil when the key pair cannot be used.
func keyPair(secret *corev1.Secret, say *kube.Report) *tls.Certificate {
	ref := kube.RefOf(secret)
	for _, field := range []string{corev1.TLSCertKey, corev1.TLSPrivateKeyKey} {
		if len(secret.Data[field]) == 0 {
			say.Errorf(ref, "data["+field+"]", "is missing: a TLS Secret has tls.crt and tls.key, both in PEM")
			return nil
		}
	}
	pair, err := tls.X509KeyPair(secret.Data[corev1.TLSCertKey], secret.Data[corev1.TLSPrivateKeyKey])
	if err == nil {
		if err := ingress.CheckKey(&pair); err != nil {
			say.Errorf(ref, "data["+corev1.TLSPrivateKeyKey+"]", "the key pair %s", err)
			return nil
		}
		if err := ingress.CheckChain(&pair); err != nil {
			say.Errorf(ref, "data["+corev1.TLSCertKey+"]", "the key pair %s", err)
			return nil
		}
		return &pair
	}
	// The error of crypto/tls tells which of the two is bad: it has "certificate input" for the certificate, and
	// "key" or a mismatch for the key.
	field := corev1.TLSPrivateKeyKey
	if strings.Contains(err.Error(), "certificate input") || strings.Contains(err.Error(), "x509") {
		field = corev1.TLSCertKey
	}
	say.Errorf(ref, "data["+field+"]", "the key pair cannot be used: %s: write a certificate and the private key that belongs to it, both in PEM",
		strings.TrimPrefix(err.Error(), "tls: "))
	return nil
}
