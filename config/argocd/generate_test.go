package argocd_test

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"regexp"
	"slices"
	"strings"
	"testing"
	"text/template"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/kustomize/api/resmap"
	"sigs.k8s.io/kustomize/kyaml/filesys"
	"sigs.k8s.io/yaml"

	"github.com/onda-run/onda/internal/manifest"
)

// What Argo CD's ApplicationSet controller and its repo server do with our files, as far as our files ask for it: matrix, git files and list generators with
// selectors, Go templates with missingkey=error, a template patch, and kustomize's components and patches of an Application's source. Argo CD's own code cannot
// be imported: its module asks for Kubernetes libraries newer than Knative's, and for a version of one that the module proxy does not have. Anything else that an
// ApplicationSet asks for is refused here. What is left out: revisions. Every revision is the tree of the working copy.

// tree is the repository as far as deployments read it: file contents by slash-separated path.
type tree map[string]string

// repository is this checkout's tree.
func repository(t *testing.T) tree {
	t.Helper()
	files := tree{}
	root := os.DirFS("../..")
	for _, dir := range []string{"config", "eventing", "functions"} {
		err := fs.WalkDir(root, dir, func(name string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || path.Ext(name) != ".yaml" && path.Ext(name) != ".lua" {
				return err
			}
			text, err := fs.ReadFile(root, name)
			files[name] = string(text)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return files
}

// with is the tree with files that are added or replaced; an empty one is taken away.
func (files tree) with(changes tree) tree {
	files = maps.Clone(files)
	maps.Copy(files, changes)
	maps.DeleteFunc(files, func(_, text string) bool { return text == "" })
	return files
}

type params = map[string]any

type generator struct {
	Matrix *struct {
		Generators []generator `json:"generators"`
	} `json:"matrix,omitempty"`
	Git *struct {
		RepoURL  string `json:"repoURL"`
		Revision string `json:"revision"`
		Files    []struct {
			Path string `json:"path"`
		} `json:"files"`
		PathParamPrefix string `json:"pathParamPrefix,omitempty"`
	} `json:"git,omitempty"`
	List *struct {
		Elements []params `json:"elements"`
	} `json:"list,omitempty"`
	Selector *metav1.LabelSelector `json:"selector,omitempty"`
}

type applicationSet struct {
	APIVersion string            `json:"apiVersion"`
	Kind       string            `json:"kind"`
	Metadata   metav1.ObjectMeta `json:"metadata"`
	Spec       struct {
		GoTemplate        bool        `json:"goTemplate"`
		GoTemplateOptions []string    `json:"goTemplateOptions"`
		Generators        []generator `json:"generators"`
		Strategy          struct {
			Type        string `json:"type"`
			RollingSync struct {
				Steps []struct {
					MatchExpressions []metav1.LabelSelectorRequirement `json:"matchExpressions"`
					MaxUpdate        any                               `json:"maxUpdate"`
				} `json:"steps"`
			} `json:"rollingSync"`
		} `json:"strategy"`
		Template      params `json:"template"`
		TemplatePatch string `json:"templatePatch,omitempty"`
	} `json:"spec"`
}

// applicationSets are those of this directory, decoded strictly.
func applicationSets(t *testing.T, files tree) []applicationSet {
	t.Helper()
	var sets []applicationSet
	for _, d := range documents(t, files) {
		if d.kind == "ApplicationSet" {
			var set applicationSet
			if err := yaml.UnmarshalStrict([]byte(d.body), &set); err != nil {
				t.Fatalf("%s: %v", d.file, err)
			}
			sets = append(sets, set)
		}
	}
	return sets
}

// applications are the Applications that an ApplicationSet makes of a tree.
func (set applicationSet) applications(files tree) ([]params, error) {
	if !set.Spec.GoTemplate || !slices.Equal(set.Spec.GoTemplateOptions, []string{"missingkey=error"}) {
		return nil, errors.New("templates are to fail on what is missing")
	}
	var made []params
	for _, g := range set.Spec.Generators {
		all, err := g.params(files)
		if err != nil {
			return nil, err
		}
		for _, p := range all {
			application, err := set.application(p)
			if err != nil {
				return nil, fmt.Errorf("%v: %w", p, err)
			}
			made = append(made, application)
		}
	}
	return made, nil
}

func (set applicationSet) application(p params) (params, error) {
	rendered, err := render(set.Spec.Template, p)
	if err != nil {
		return nil, err
	}
	application := rendered.(params)
	if set.Spec.TemplatePatch != "" {
		text, err := execute(set.Spec.TemplatePatch, p)
		if err != nil {
			return nil, err
		}
		var patch params
		if err := yaml.Unmarshal([]byte(text), &patch); err != nil {
			return nil, fmt.Errorf("template patch: %w", err)
		}
		application = merge(application, patch)
	}
	application["apiVersion"], application["kind"] = set.APIVersion, "Application"
	application["metadata"].(params)["namespace"] = set.Metadata.Namespace
	return application, nil
}

func (g generator) params(files tree) ([]params, error) {
	var all []params
	switch {
	case g.Matrix != nil && len(g.Matrix.Generators) == 2 && g.Git == nil && g.List == nil:
		firsts, err := g.Matrix.Generators[0].params(files)
		if err != nil {
			return nil, err
		}
		for _, first := range firsts {
			// The second may name what the first found.
			second, err := g.Matrix.Generators[1].rendered(first)
			if err != nil {
				return nil, err
			}
			seconds, err := second.params(files)
			if err != nil {
				return nil, err
			}
			for _, p := range seconds {
				for name := range p {
					if _, both := first[name]; both {
						return nil, fmt.Errorf("both generators give %s", name) // Argo CD would merge the two
					}
				}
				maps.Copy(p, first)
				all = append(all, p)
			}
		}
	case g.Git != nil && g.Matrix == nil && g.List == nil:
		for _, name := range slices.Sorted(maps.Keys(files)) {
			matches := 0
			for _, f := range g.Git.Files {
				// Argo CD's globbing is git's, whose star passes slashes, or the usual one, as it is set up: they must agree.
				loose := regexp.MustCompile("^" + strings.ReplaceAll(regexp.QuoteMeta(f.Path), `\*`, ".*") + "$").MatchString(name)
				strict, err := path.Match(f.Path, name)
				if err != nil {
					return nil, fmt.Errorf("%s: %w", f.Path, err)
				}
				if loose != strict {
					return nil, fmt.Errorf("%s matches %s or not, depending on who looks", f.Path, name)
				}
				if strict {
					matches++
				}
			}
			if matches == 0 {
				continue
			}
			p := params{}
			if err := yaml.Unmarshal([]byte(files[name]), &p); err != nil {
				return nil, fmt.Errorf("%s: %w", name, err)
			}
			at := params{"path": path.Dir(name), "basename": path.Base(path.Dir(name)), "filename": path.Base(name)}
			if g.Git.PathParamPrefix != "" {
				p[g.Git.PathParamPrefix] = params{"path": at}
			} else {
				p["path"] = at
			}
			all = append(all, p)
		}
	case g.List != nil && g.Matrix == nil && g.Git == nil:
		for _, element := range g.List.Elements {
			all = append(all, maps.Clone(element))
		}
	default:
		return nil, errors.New("a generator that is not known here")
	}
	if g.Selector == nil {
		return all, nil
	}
	if len(g.Selector.MatchLabels) > 0 {
		return nil, errors.New("matchLabels are not known here")
	}
	return slices.DeleteFunc(all, func(p params) bool {
		flat := map[string]string{}
		flatten("", p, flat)
		return !selects(g.Selector.MatchExpressions, flat)
	}), nil
}

// rendered is the generator with its templates filled in.
func (g generator) rendered(p params) (generator, error) {
	text, err := yaml.Marshal(g)
	if err != nil {
		return g, err
	}
	var plain params
	if err := yaml.Unmarshal(text, &plain); err != nil {
		return g, err
	}
	filled, err := render(plain, p)
	if err != nil {
		return g, err
	}
	if text, err = yaml.Marshal(filled); err != nil {
		return g, err
	}
	var out generator
	return out, yaml.UnmarshalStrict(text, &out)
}

// flatten writes the leaves of a value under their names joined by dots, as selectors name them.
func flatten(at string, value any, into map[string]string) {
	join := func(name string) string { return strings.TrimPrefix(at+"."+name, ".") }
	switch value := value.(type) {
	case params:
		for name, v := range value {
			flatten(join(name), v, into)
		}
	case []any:
		for i, v := range value {
			flatten(join(fmt.Sprint(i)), v, into)
		}
	default:
		into[at] = fmt.Sprint(value)
	}
}

// selects tells whether all expressions hold.
func selects(expressions []metav1.LabelSelectorRequirement, labels map[string]string) bool {
	for _, e := range expressions {
		value, has := labels[e.Key]
		holds := false
		switch e.Operator {
		case metav1.LabelSelectorOpIn:
			holds = has && slices.Contains(e.Values, value)
		case metav1.LabelSelectorOpNotIn:
			holds = !has || !slices.Contains(e.Values, value)
		case metav1.LabelSelectorOpExists:
			holds = has
		case metav1.LabelSelectorOpDoesNotExist:
			holds = !has
		}
		if !holds {
			return false
		}
	}
	return true
}

// render executes every string of a value, names of members too.
func render(value any, p params) (any, error) {
	switch value := value.(type) {
	case string:
		return execute(value, p)
	case params:
		out := params{}
		for name, v := range value {
			name, err := execute(name, p)
			if err != nil {
				return nil, err
			}
			if out[name], err = render(v, p); err != nil {
				return nil, err
			}
		}
		return out, nil
	case []any:
		out := make([]any, len(value))
		for i, v := range value {
			var err error
			if out[i], err = render(v, p); err != nil {
				return nil, err
			}
		}
		return out, nil
	}
	return value, nil
}

// execute fills in a template. Argo CD gives it Sprig's functions too; ours do without.
func execute(text string, p params) (string, error) {
	t, err := template.New("").Option("missingkey=error").Parse(text)
	if err != nil {
		return "", err
	}
	var out bytes.Buffer
	err = t.Execute(&out, p)
	return out.String(), err
}

// merge is a merge patch, which is what a strategic one is for the fields that we patch: null takes away, a list takes the place of a list.
func merge(value, patch params) params {
	for name, p := range patch {
		v, isMap := value[name].(params)
		pm, patchIsMap := p.(params)
		switch {
		case p == nil:
			delete(value, name)
		case isMap && patchIsMap:
			value[name] = merge(v, pm)
		default:
			value[name] = p
		}
	}
	return value
}

// source is one source of an Application.
type source struct {
	RepoURL        string `json:"repoURL"`
	Path           string `json:"path"`
	TargetRevision string `json:"targetRevision"`
	Kustomize      struct {
		Components []string `json:"components"`
		Patches    []any    `json:"patches"`
	} `json:"kustomize"`
}

// application is what the tests look at of an Application.
type application struct {
	Metadata metav1.ObjectMeta `json:"metadata"`
	Spec     struct {
		Project     string   `json:"project"`
		Source      *source  `json:"source"`
		Sources     []source `json:"sources"`
		Destination struct {
			Server    string `json:"server"`
			Namespace string `json:"namespace"`
		} `json:"destination"`
		SyncPolicy struct {
			SyncOptions []string `json:"syncOptions"`
		} `json:"syncPolicy"`
	} `json:"spec"`
}

func (a application) sources() []source {
	if a.Spec.Source != nil {
		return append(a.Spec.Sources, *a.Spec.Source)
	}
	return a.Spec.Sources
}

// build renders a source as Argo CD's repo server does: it writes the Application's patches and components into the kustomization.
func (s source) build(files tree) (resmap.ResMap, error) {
	name := s.Path + "/kustomization.yaml"
	text, ok := files[name]
	if !ok {
		return nil, fmt.Errorf("%s is not there", name)
	}
	var kustomization params
	if err := yaml.Unmarshal([]byte(text), &kustomization); err != nil {
		return nil, err
	}
	for _, c := range s.Kustomize.Components {
		components, _ := kustomization["components"].([]any)
		kustomization["components"] = append(components, c)
	}
	patches, _ := kustomization["patches"].([]any)
	kustomization["patches"] = append(patches, s.Kustomize.Patches...)
	changed, err := yaml.Marshal(kustomization)
	if err != nil {
		return nil, err
	}
	disk := filesys.MakeFsInMemory()
	for name, text := range files.with(tree{name: string(changed)}) {
		if err := disk.WriteFile("/"+name, []byte(text)); err != nil {
			return nil, err
		}
	}
	return manifest.Render(disk, "/"+s.Path)
}
