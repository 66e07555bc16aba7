"""Prompts for common tasks: each tells an agent, in the person's words, which calls lead to the result.

The only surface that names tools: it is written advice about them. A test holds the names to the tools.
"""

from server.offers import Argument, Prompt

PROMPTS = {
    prompt.name: prompt
    for prompt in (
        Prompt(
            "product_shot",
            "Product shot",
            "A picture of a product in a setting, ready for a page.",
            (
                Argument("product", "The product: words, or the id of an image of it"),
                Argument("setting", "Where it stands", "on a plain background"),
            ),
            """\
Make a product shot of: $product
Setting: $setting

How to ask the model: $advice

1. If the product is given as an image, use compose_from_references with it and say where to place it; \
otherwise use generate_image. Ask for two variants (num_images 2).
2. Look at the previews. If neither is usable, change the wording and try once more with another seed.
3. Correct what disturbs with edit_image, one change per call.
4. Give me the id and the link of the best one, and say what you would still improve. If I want a file, \
write it with save_image.""",
        ),
        Prompt(
            "sticker_sheet",
            "Sticker sheet",
            "A set of stickers in one style.",
            (
                Argument("subject", "What the stickers show"),
                Argument("count", "How many", "4"),
                Argument("style", "How they look", "flat colours, plain background"),
            ),
            """\
Make a sheet of $count stickers.
Subject: $subject
Style: $style

How to ask the model: $advice

1. Write $count prompts: the same style words in each, one subject per sticker.
2. Call generate_image once for each, with the same size and steps, and the seeds 1, 2, 3, ...
3. Look at the previews; make again what does not fit the others.
4. Give me a numbered list: prompt, id and link of each sticker. If I want files, use save_image.""",
        ),
        Prompt(
            "storyboard",
            "Storyboard",
            "A story as a row of pictures with the same hero.",
            (Argument("story", "What happens"), Argument("panels", "How many pictures", "4")),
            """\
Draw a storyboard of $panels pictures.
Story: $story

How to ask the model: $advice

1. Split the story into $panels moments, a sentence each.
2. Make the hero first, alone, with generate_image; show it to me before you go on.
3. Make every picture with compose_from_references: the hero is the first image, the previous picture \
the second where the place stays the same.
4. Check each picture with describe_image against its sentence; correct it with edit_image.
5. Give me the sentences with the id and link of each picture.""",
        ),
        Prompt(
            "before_after",
            "Before and after",
            "An image changed as you say, and the two compared.",
            (Argument("image", "Id of the image"), Argument("change", "What to change")),
            """\
Change the image $image as follows: $change

How to ask the model: $advice

1. Look at it with view_image.
2. Call edit_image with the change as instruction: what to change and how it should look then. Everything \
not mentioned must stay.
3. Ask describe_image, with both images, what differs between the first image and the second image.
4. If more changed than I asked for, try once more with a higher image_guidance_scale or another seed.
5. Show me before and after: both ids and links, and the difference in a sentence.""",
        ),
    )
}
